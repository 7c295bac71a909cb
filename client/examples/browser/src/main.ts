// A page on which a picture develops. index.html?server=http://127.0.0.1:8080; the server's `cors_origins` must have
// this page's origin.
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { ImageService } from "./gen/darkroom/v1/image_service_pb.js";
import { BadRequestSchema } from "./gen/google/rpc/error_details_pb.js";

const baseUrl = new URLSearchParams(location.search).get("server") ?? "http://127.0.0.1:8080";
const images = createClient(ImageService, createConnectTransport({ baseUrl, useBinaryFormat: true }));

const form = document.querySelector("form")!;
const [generate, stop] = form.querySelectorAll("button");
const picture = document.querySelector("img")!;
const progress = document.querySelector("progress")!;
const status = document.querySelector("[role=status]")!;
const alert = document.querySelector("[role=alert]")!;
let running: AbortController | undefined;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  void make();
});
stop.addEventListener("click", () => running?.abort());

async function make(): Promise<void> {
  running = new AbortController(); // aborting it closes the stream, which stops the job on the server
  generate.disabled = !(stop.disabled = false);
  alert.textContent = "";
  try {
    await watch(running.signal);
  } catch (error) {
    explain(ConnectError.from(error));
  } finally {
    generate.disabled = !(stop.disabled = true);
  }
}

async function watch(signal: AbortSignal): Promise<void> {
  const fields = new FormData(form);
  const seed = String(fields.get("seed"));
  const parameters = {
    prompt: String(fields.get("prompt")),
    numInferenceSteps: Number(fields.get("steps")),
    ...(seed ? { seed: BigInt(seed) } : {}), // an int64: a number would lose digits
  };
  let file: Uint8Array[] = [];
  for await (const { event } of images.generate({ parameters }, { signal })) {
    switch (event?.event.case) {
      case "queued":
        status.textContent = `waiting: number ${event.event.value.position}`;
        break;
      case "step": {
        const { step, stepCount } = event.event.value;
        progress.value = step / stepCount;
        status.textContent = `step ${step} of ${stepCount}`;
        break;
      }
      case "preview":
        await show([event.event.value.imageBytes], event.event.value.mediaType, "preview");
        break;
      case "image":
        file = [event.event.value.imageBytes];
        status.textContent = `seed ${event.event.value.seed}`;
        break;
      case "chunk": // the rest of a large picture
        file.push(event.event.value.data);
        break;
    }
  }
  await show(file, "image/png", "picture");
}

async function show(parts: Uint8Array[], type: string, kind: string): Promise<void> {
  const before = picture.src;
  picture.src = URL.createObjectURL(new Blob(parts as BlobPart[], { type }));
  await picture.decode();
  picture.dataset.kind = kind;
  URL.revokeObjectURL(before);
}

function explain(error: ConnectError): void {
  if (error.code === Code.Canceled) {
    status.textContent = "stopped";
    return;
  }
  const violations = error.findDetails(BadRequestSchema).flatMap((each) => each.fieldViolations);
  alert.textContent = violations.map((each) => `${each.field} ${each.description}`).join("\n") || error.rawMessage;
}
