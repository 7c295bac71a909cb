// Makes pictures and lets one watch: node dist/main.js "a red circle" [count] [seed] [folder]
// DARKROOM_URL is the server's `http` address, DARKROOM_TOKEN the token where it wants one.
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { Pictures } from "./pictures.js";
import { ImageService } from "./gen/darkroom/v1/image_service_pb.js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

const [prompt = "a red circle on a blue background", count = "1", seed, folder = "out"] = process.argv.slice(2);

const withToken: Interceptor = (next) => (request) => {
  const token = process.env.DARKROOM_TOKEN;
  if (token) request.header.set("authorization", `Bearer ${token}`);
  return next(request);
};
const transport = createConnectTransport({
  baseUrl: process.env.DARKROOM_URL ?? "http://127.0.0.1:8080",
  httpVersion: "1.1",
  useBinaryFormat: true, // pictures are bytes; JSON would make them base64
  interceptors: [withToken],
});
const images = createClient(ImageService, transport);

const stopping = new AbortController(); // Ctrl-C stops the job on the server, within a step
process.once("SIGINT", () => stopping.abort());

try {
  await mkdir(folder, { recursive: true });
  await make();
} catch (error) {
  process.exitCode = explain(ConnectError.from(error));
}

async function make(): Promise<void> {
  const pictures = new Pictures();
  const request = {
    // A seed is an int64, in JavaScript a bigint: a number would lose digits above 2^53.
    parameters: { prompt, numImages: Number(count), ...(seed === undefined ? {} : { seed: BigInt(seed) }) },
    preview: { everyNSteps: 5 },
  };
  for await (const { event } of images.generate(request, { signal: stopping.signal })) {
    switch (event?.event.case) {
      case "accepted":
        console.log(`accepted: seeds ${event.event.value.seeds.join(", ")}`);
        break;
      case "queued":
        console.log(`waiting: number ${event.event.value.position}`);
        break;
      case "step": {
        const { imageIndex, step, stepCount } = event.event.value;
        console.log(`image ${imageIndex}: step ${step} of ${stepCount}`);
        break;
      }
      case "preview": {
        const { imageIndex, step, imageBytes, mediaType } = event.event.value;
        await writeFile(join(folder, `${imageIndex}-step-${step}.${extension(mediaType)}`), imageBytes);
        break;
      }
      case "image":
        pictures.begin(event.event.value);
        break;
      case "chunk": // the rest of a large picture
        pictures.add(event.event.value);
        break;
      // Others may be added to the API: what one does not know, one skips.
    }
    for (const { index, seed, bytes, mediaType } of pictures.whole()) {
      const file = join(folder, `${index}.${extension(mediaType)}`);
      await writeFile(file, bytes);
      console.log(`wrote ${file}: ${bytes.length} bytes, seed ${seed}`);
    }
  }
}

/** Says what went wrong, by the details that every error of the server has; returns the exit code. */
function explain(error: ConnectError): number {
  if (error.code === Code.Canceled) {
    console.error("cancelled");
    return 130;
  }
  const [reason] = error.findDetails(ErrorInfoSchema);
  console.error(`${Code[error.code]} ${reason?.reason ?? ""}: ${error.rawMessage}`);
  for (const { fieldViolations } of error.findDetails(BadRequestSchema)) {
    for (const { field, description } of fieldViolations) console.error(`  ${field} ${description}`);
  }
  for (const { retryDelay } of error.findDetails(RetryInfoSchema)) {
    console.error(`  try again in ${retryDelay?.seconds} s`);
  }
  return 1;
}

function extension(mediaType: string): string {
  return mediaType.replace("image/", "");
}
