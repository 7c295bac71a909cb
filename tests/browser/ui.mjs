// What is done on the page `darkroom ui`. Each returns what it saw.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Desk } from "./desk.mjs";

// A picture develops; by Ctrl-Enter, on a desk's screen and a phone's. It is saved.
export async function develop(given) {
  const desk = await Desk.at(given);
  const { page } = desk;
  const empty = await desk.text("view");
  await desk.observe();
  await desk.ask("a large yellow star on a purple background", 20);
  await page.keyboard.press("Control+Enter");
  await desk.shown("picture");
  await desk.kept();
  const below = await page.locator("#gallery button").first().evaluate((each) => each.getBoundingClientRect().bottom);
  await desk.picture("desk");
  const [download] = await Promise.all([page.waitForEvent("download"), desk.press("save")]);
  await download.saveAs(join(given.folder, "saved.png"));
  await page.setViewportSize({ width: 390, height: 844 });
  await page.waitForFunction(() => getComputedStyle(document.querySelector("#desk")).flexDirection === "column");
  await desk.picture("phone");
  const places = await page.evaluate(() => ["view", "prompt", "generate", "gallery", "model"]
    .map((id) => document.getElementById(id).getBoundingClientRect()).map(({ top, bottom }) => [top, bottom]));
  return {
    empty,
    below,
    places,
    previews: await desk.previews(),
    details: await desk.text("details"),
    seed: await desk.value("seed"),
    wide: await page.evaluate(() => document.documentElement.scrollWidth),
  };
}

// Esc stops midway.
export async function stop(given) {
  const desk = await Desk.at(given);
  await desk.askMuch("a red circle");
  await desk.page.keyboard.press("Control+Enter");
  await desk.says("Step ");
  await desk.page.keyboard.press("Escape");
  await desk.says("Stopped");
  await desk.page.locator("#generate:enabled").waitFor();
  return { status: await desk.text("status") };
}

// A mask is drawn on a picture, and the part under it repainted.
export async function inpaint(given) {
  const desk = await Desk.at(given);
  await desk.mode("Inpaint");
  await desk.upload("picture");
  await desk.brush();
  const colours = await desk.page.evaluate(() => {
    const { canvas } = darkroomBrush;
    const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    return new Set(pixels.filter((pixel) => pixel >>> 24 === 255)).size; // of strokes; at their edges are others
  });
  await desk.make("a green star", 8);
  await desk.picture("inpaint");
  await writeFile(join(given.folder, "output.png"), await desk.bytes());
  return { colours, details: await desk.text("details"), mask: await desk.page.locator("#mask").isVisible() };
}

// A picture gets margins, once they are given.
export async function outpaint(given) {
  const desk = await Desk.at(given);
  await desk.mode("Outpaint");
  await desk.upload("picture");
  await desk.page.locator("#picture img").waitFor();
  await desk.ask("a red circle on a blue background", 8);
  await desk.press("generate");
  await desk.beside("left", "margin greater than 0");
  const nothing = await desk.text("view");
  await desk.write("left", "16");
  await desk.write("bottom", "8");
  await desk.press("generate");
  await desk.shown("picture");
  await desk.picture("outpaint");
  await writeFile(join(given.folder, "output.png"), await desk.bytes());
  return { nothing, left: await desk.text("left"), details: await desk.text("details") };
}

// Wrong values are refused beside their fields, until they are right.
export async function refuse(given) {
  const desk = await Desk.at(given);
  await desk.write("prompt", "red ".repeat(3000));
  await desk.page.locator("#random_seed input").uncheck();
  await desk.write("seed", "-5");
  await desk.press("generate");
  await desk.beside("seed", "must be from 0");
  await desk.beside("prompt", "characters");
  const refused = { status: await desk.text("status"), seed: await desk.text("seed"), prompt: await desk.text("prompt") };
  await desk.picture("refused");
  await desk.write("seed", "9007199254740993");
  await desk.make("a red circle", 4);
  await desk.without("seed", "must be"); // an event of its own, beside the picture's
  return { ...refused, details: await desk.text("details") };
}

// Two windows make different pictures at the same time.
export async function windows(given) {
  const desks = [await Desk.at(given), await Desk.at(given)];
  const prompts = ["a red circle", "a green star"];
  for (const [index, desk] of desks.entries()) await desk.ask(prompts[index], 40);
  await Promise.all(desks.map((desk) => desk.press("generate")));
  await Promise.all(desks.map((desk) => desk.shown("preview")));
  const together = await Promise.all(desks.map((desk) => desk.page.locator("#view img[data-kind=preview]").count()));
  for (const desk of desks) await desk.kept();
  return {
    together,
    prompts: await Promise.all(desks.map((desk) => desk.alt())),
    galleries: await Promise.all(desks.map((desk) => desk.made())),
  };
}

// A reload finds the running job, and the pictures made before.
export async function reload(given) {
  const desk = await Desk.at(given);
  await desk.make("a blue square", 4);
  await desk.unfold("More");
  await desk.number("num_images", 8);
  await desk.askMuch("a red heart");
  await desk.press("generate");
  await desk.says("0 of 8 pictures, ");
  const before = await desk.text("details");
  await desk.load(() => desk.page.reload());
  await desk.says("0 of 8 pictures, ");
  await desk.shown("preview");
  const running = { alt: await desk.alt(), generate: await desk.page.locator("#generate").isEnabled() };
  await desk.kept();
  await desk.page.waitForFunction(() => document.querySelector("#prompt textarea").value);
  const random = await desk.page.locator("#random_seed input").isChecked();
  const seen = { running, before, random, gallery: await desk.made(), prompt: await desk.value("prompt") };
  await desk.press("stop");
  await desk.says("Stopped");
  return seen;
}

// A picture waits in the queue behind those of another window, and develops when they are stopped.
export async function queue(given) {
  const [first, second] = [await Desk.at(given), await Desk.at(given)];
  await first.unfold("Many prompts from one");
  await first.kind("All of them");
  await first.unfold("More");
  await first.number("num_images", 8);
  await first.ask("a {red|green|blue} circle", 150); // 16 pictures fill the batch; the third job waits
  await first.press("generate");
  await first.says("0 of 24 pictures, ");
  await second.ask("a large yellow star on a purple background", 6);
  await second.press("generate");
  await second.says("1 job ahead in the queue");
  const [waiting, early] = [await second.text("status"), await second.page.locator("#view img").count()];
  await second.picture("queue");
  await first.press("stop");
  await second.shown("picture");
  await second.says("Done");
  return { waiting, early, details: await second.text("details") };
}

// A preset is chosen, and shows its values.
export async function preset(given) {
  const desk = await Desk.at(given);
  await desk.write("prompt", "a large red circle on a white background");
  await desk.choose("preset", "quick");
  await desk.page.waitForFunction(() => document.querySelector("#steps input[type=number]").value === "7");
  const values = { scheduler: await desk.value("scheduler"), guidance: await desk.value("guidance") };
  await desk.press("generate");
  await desk.shown("picture");
  await desk.picture("preset");
  return { ...values, details: await desk.text("details") };
}

// Two LoRAs with their sliders, and a ControlNet whose map is seen before it is used.
export async function conditions(given) {
  const desk = await Desk.at(given);
  await desk.unfold("LoRAs");
  await desk.choose("loras", "outline");
  await desk.page.getByRole("option", { name: "stripes" }).click();
  await desk.page.locator("#weight_1").waitFor();
  await desk.number("weight_0", 0.7);
  await desk.number("weight_1", 0.25);
  await desk.unfold("ControlNets");
  await desk.choose("control_model_0", "canny");
  await desk.upload("control_image_0");
  await desk.page.locator("#map_0 img").waitFor();
  const sliders = [await desk.text("weight_0"), await desk.text("weight_1")];
  await desk.make("a large green heart on a white background", 6);
  await desk.page.locator("#map_0").scrollIntoViewIfNeeded();
  await desk.picture("conditions");
  return { sliders, details: await desk.text("details") };
}

// The prompts of a template side by side: all, or some; what is no template is refused.
export async function templates(given) {
  const desk = await Desk.at(given);
  await desk.unfold("Many prompts from one");
  await desk.kind("All of them");
  await desk.ask("a {red|blue} {circle|", 4);
  await desk.press("generate");
  await desk.beside("prompt", "cannot be read");
  const refused = await desk.text("prompt");
  await desk.write("prompt", "a {red|blue} {circle|star}");
  await desk.press("generate");
  await desk.says("Done");
  await desk.picture("templates");
  const combinations = await desk.labels();
  await desk.kind("Some by chance");
  await desk.number("samples", 2);
  await desk.write("prompt", "a __colour__ {circle|star|heart}");
  await desk.press("generate");
  await desk.page.locator("#view .stage[data-count='2']").waitFor();
  await desk.says("Done");
  return { refused, combinations, samples: await desk.labels() };
}

// Schedulers side by side; a picture's settings used again, and the picture edited.
export async function compare(given) {
  const desk = await Desk.at(given);
  await desk.ask("a large yellow star on a purple background", 6);
  await desk.unfold("Compare schedulers");
  await desk.press("compare");
  await desk.says("Done");
  const labels = await desk.labels();
  const newest = await desk.text("details");
  await desk.picture("compare");
  await desk.page.locator("#gallery button").nth(1).click();
  await desk.page.locator("#view .stage[data-count='1']").waitFor();
  const details = await desk.text("details");
  await desk.press("reuse");
  await desk.page.waitForFunction(() => !document.querySelector("#random_seed input").checked);
  const used = { scheduler: await desk.value("scheduler"), seed: await desk.value("seed") };
  await desk.press("change");
  await desk.page.waitForFunction(() => document.querySelector("#brush img")?.naturalWidth > 0);
  return { labels, newest, details, used, mode: await desk.text("mode label.selected") };
}

// The page asks its visitor for a password, and hides the token: `given.token`.
export async function login(given) {
  const texts = [];
  given.context.on("response", async (response) => texts.push(await response.text().catch(() => "")));
  const page = await given.context.newPage();
  const enter = async (password) => {
    await page.getByLabel("username").fill("visitor");
    await page.getByLabel("password").fill(password);
    await page.getByRole("button", { name: "Login" }).click();
  };
  await page.goto(given.url);
  await enter("a guess");
  await page.getByText("Incorrect Credentials").waitFor();
  await page.screenshot({ path: join(given.folder, "login.png") });
  await enter("open sesame");
  const desk = new Desk(page, given.folder);
  await desk.load(async () => {});
  await desk.make("a fox", 4);
  return { texts: texts.length, told: texts.filter((text) => text.includes(given.token)).length, details: await desk.text("details") };
}

// A server that is not there yet, and then does not let the page in: it says so.
export async function wait({ context, url, folder }) {
  const desk = new Desk(await context.newPage(), folder);
  await desk.page.goto(url);
  await desk.says("Waiting");
  const waiting = await desk.text("status");
  await desk.picture("waiting");
  await desk.page.locator("#status [role=alert]").waitFor();
  const opened = await desk.text("status");
  await desk.picture("refused");
  await desk.write("prompt", "a fox");
  await desk.press("generate");
  await desk.page.locator("#view .stage.empty").waitFor();
  await desk.page.locator("#status [role=alert]").waitFor();
  return { waiting, opened, asked: await desk.text("status") };
}

// The page at work, for the README.
export async function readme(given) {
  const desk = await Desk.at(given);
  await desk.steps(20);
  for (const prompt of ["a red heart on a white background", "a large green triangle on a yellow background",
    "a blue circle on an orange background", "a pink square on a black background",
    "a large yellow star on a purple background", "a large orange heart on a cyan background"]) {
    await desk.write("prompt", prompt);
    await desk.press("generate");
    await desk.page.locator("#details p").filter({ hasText: prompt }).waitFor();
    await desk.says("Done");
  }
  const gallery = await desk.made();
  await desk.ask("a large purple star on a green background", 75);
  await desk.press("generate");
  await desk.says("Step [2-5]\\d ");
  await desk.picture("readme");
  return { gallery };
}
