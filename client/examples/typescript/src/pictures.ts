import type { ChunkEvent, ImageEvent } from "./gen/darkroom/v1/events_pb.js";

export interface Picture {
  index: number;
  seed: bigint;
  mediaType: string;
  bytes: Uint8Array;
}

/** Puts pictures together: one over the chunk size comes as an `image` event and `chunk` events behind it. */
export class Pictures {
  private readonly begun = new Map<number, { image: ImageEvent; bytes: Uint8Array; filled: number }>();

  begin(image: ImageEvent): void {
    const bytes = new Uint8Array(Math.max(Number(image.totalBytes), image.imageBytes.length));
    bytes.set(image.imageBytes);
    this.begun.set(image.imageIndex, { image, bytes, filled: image.imageBytes.length });
  }

  add(chunk: ChunkEvent): void {
    if (chunk.target.case !== "imageIndex") return; // of a control map, which this example does not ask for
    const part = this.begun.get(chunk.target.value);
    if (part === undefined) throw new Error(`a chunk of image ${chunk.target.value} came before it`);
    part.bytes.set(chunk.data, Number(chunk.offset)); // an int64, too
    part.filled += chunk.data.length;
  }

  /** The pictures that have become whole since the last call. */
  *whole(): Generator<Picture> {
    for (const [index, { image, bytes, filled }] of this.begun) {
      if (filled < bytes.length) continue;
      this.begun.delete(index);
      yield { index, seed: image.seed, mediaType: image.mediaType, bytes };
    }
  }
}
