// Drives `darkroom ui` in headless Chromium: node ui.mjs SCENARIO URL FOLDER. Prints what it saw, as JSON.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import chromium from "@sparticuz/chromium";
import { chromium as playwright } from "playwright-core";

const [scenario, url, folder] = process.argv.slice(2);
const browser = await playwright.launch({ args: chromium.args, executablePath: await chromium.executablePath() });
const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
const errors = [];
const outside = [];

async function open() {
  const page = await context.newPage();
  page.setDefaultTimeout(40_000);
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("request", (request) => {
    const address = new URL(request.url());
    if (address.protocol.startsWith("http") && address.origin !== new URL(url).origin) outside.push(request.url());
  });
  await load(page, () => page.goto(url));
  return page;
}

// Loads the page and waits until it knows what the server offers.
async function load(page, go) {
  await go();
  await page.locator("#server p").waitFor();
}

// Counts the pictures that the page shows from now on.
const observe = (page) => page.evaluate(() => {
  window.shown = new Set();
  new MutationObserver(() => {
    for (const image of document.querySelectorAll("#view img")) window.shown.add(image.dataset.kind + image.src);
  }).observe(document.querySelector("#view"), { subtree: true, childList: true, attributes: true });
});
const write = (page, field, text) => page.locator(`#${field} textarea, #${field} input:not([type=range])`).first().fill(text);
const steps = async (page, count) => {
  await page.locator("#steps input[type=number]").fill(String(count));
  await page.locator("#steps input[type=number]").blur();
};
const shown = (page, kind) => page.locator(`#view img[data-kind=${kind}]`).first().waitFor();
const says = (page, text) => page.locator("#status p").filter({ hasText: new RegExp(`^${text}`) }).waitFor();
const status = (page) => page.locator("#status p").textContent();
const picture = (page, name) => page.screenshot({ path: join(folder, name) });
const alt = (page) => page.locator("#view img").first().getAttribute("alt");

// Brushes over the middle of the picture to inpaint.
async function brush(page) {
  const canvas = page.locator("#brush canvas");
  await canvas.scrollIntoViewIfNeeded();
  const box = await canvas.boundingBox();
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  await page.mouse.move(x - 30, y);
  await page.mouse.down();
  for (const step of [-15, 0, 15, 30]) await page.mouse.move(x + step, y);
  await page.mouse.up();
}

const scenarios = {
  // A picture develops; by Ctrl-Enter, on a desk's screen and a phone's.
  async develop() {
    const page = await open();
    await observe(page);
    await write(page, "prompt", "a large yellow star on a purple background");
    await steps(page, 12);
    await page.keyboard.press("Control+Enter");
    await shown(page, "picture");
    await page.locator("#gallery img").first().waitFor();
    await page.waitForTimeout(300);
    await picture(page, "desk.png");
    await page.setViewportSize({ width: 390, height: 844 });
    await page.waitForTimeout(300);
    await picture(page, "phone.png");
    const kinds = await page.evaluate(() => [...window.shown].map((each) => each.startsWith("preview") ? "preview" : "picture"));
    return {
      previews: kinds.filter((kind) => kind === "preview").length,
      details: await page.locator("#details").textContent(),
      seed: await page.locator("#seed input, #seed textarea").inputValue(),
      wide: await page.evaluate(() => document.documentElement.scrollWidth),
    };
  },

  // Esc stops midway.
  async stop() {
    const page = await open();
    await write(page, "prompt", "a red circle");
    await steps(page, 150);
    await page.keyboard.press("Control+Enter");
    await says(page, "Step ");
    await page.keyboard.press("Escape");
    await says(page, "Stopped");
    await page.locator("#generate:enabled").waitFor();
    return { status: await status(page) };
  },

  // A mask is drawn on a picture, and the part under it repainted.
  async inpaint() {
    const page = await open();
    await page.locator("#mode label").filter({ hasText: "Inpaint" }).click();
    await page.locator("#picture input[type=file]").setInputFiles(join(folder, "input.png"));
    await page.waitForFunction(() => document.querySelector("#brush img")?.naturalWidth > 0);
    await brush(page);
    await write(page, "prompt", "a green star");
    await steps(page, 8);
    await page.locator("#generate").click();
    await shown(page, "picture");
    await page.locator("#brush").scrollIntoViewIfNeeded();
    await picture(page, "inpaint.png");
    const address = await page.locator("#view img").getAttribute("src");
    await writeFile(join(folder, "output.png"), Buffer.from(await (await page.request.get(new URL(address, url).href)).body()));
    return { status: await status(page), details: await page.locator("#details").textContent() };
  },

  // Wrong values are refused beside their fields, until they are right.
  async refuse() {
    const page = await open();
    await write(page, "prompt", "red ".repeat(3000));
    await page.locator("#random_seed input").uncheck();
    await write(page, "seed", "-5");
    await page.locator("#generate").click();
    await page.locator("#seed").filter({ hasText: "must be from 0" }).waitFor();
    await page.locator("#prompt").filter({ hasText: "characters" }).waitFor();
    const refused = {
      status: await status(page),
      seed: await page.locator("#seed").textContent(),
      prompt: await page.locator("#prompt").textContent(),
    };
    await picture(page, "refused.png");
    await write(page, "prompt", "a red circle");
    await write(page, "seed", "9007199254740993");
    await steps(page, 4);
    await page.locator("#generate").click();
    await shown(page, "picture");
    return { ...refused, after: await page.locator("#seed").textContent(), details: await page.locator("#details").textContent() };
  },

  // Two windows make different pictures at the same time.
  async windows() {
    const pages = [await open(), await open()];
    const prompts = ["a red circle", "a green star"];
    for (const [index, page] of pages.entries()) {
      await write(page, "prompt", prompts[index]);
      await steps(page, 25);
    }
    for (const page of pages) await page.locator("#generate").click();
    for (const page of pages) await shown(page, "preview");
    const together = await Promise.all(pages.map((page) => page.locator("#view img[data-kind=preview]").count()));
    for (const page of pages) await page.locator("#gallery img").first().waitFor();
    return { together, prompts: await Promise.all(pages.map(alt)), galleries: await Promise.all(pages.map((page) => page.locator("#gallery img").count())) };
  },

  // A reload finds the running job, and the pictures made before.
  async reload() {
    const page = await open();
    await write(page, "prompt", "a blue square");
    await steps(page, 4);
    await page.locator("#generate").click();
    await shown(page, "picture");
    await write(page, "prompt", "a red heart");
    await steps(page, 100);
    await page.locator("#generate").click();
    await says(page, "Step \\d+ of 100");
    await load(page, () => page.reload());
    await says(page, "Step \\d+ of 100");
    await shown(page, "preview");
    const running = { alt: await alt(page), generate: await page.locator("#generate").isEnabled() };
    await page.locator("#gallery img").first().waitFor();
    const gallery = await page.locator("#gallery img").count();
    await page.waitForFunction(() => document.querySelector("#prompt textarea").value);
    const prompt = await page.locator("#prompt textarea").inputValue();
    await page.locator("#stop").click();
    await says(page, "Stopped");
    return { running, gallery, prompt };
  },

  // A preset is chosen, and shows its values.
  async preset() {
    const page = await open();
    await write(page, "prompt", "a large red circle on a white background");
    await page.locator("#preset input").click();
    await page.getByRole("option", { name: "quick" }).click();
    await page.waitForFunction(() => document.querySelector("#steps input[type=number]").value === "7");
    await picture(page, "preset.png");
    const values = {
      scheduler: await page.locator("#scheduler input").inputValue(),
      guidance: await page.locator("#guidance input[type=number]").inputValue(),
    };
    await page.locator("#generate").click();
    await shown(page, "picture");
    await picture(page, "preset.png");
    return { ...values, details: await page.locator("#details").textContent() };
  },

  // A LoRA with its slider, and a ControlNet whose map is seen before it is used.
  async conditions() {
    const page = await open();
    await write(page, "prompt", "a large green heart on a white background");
    await steps(page, 6);
    await page.getByText("LoRAs").first().click();
    await page.locator("#loras input").click();
    await page.getByRole("option", { name: "outline" }).click();
    await page.locator("#weight_0 input[type=number]").fill("0.7");
    await page.locator("#weight_0 input[type=number]").blur();
    await page.getByText("ControlNets").first().click();
    await page.locator("#control_model_0 input").click();
    await page.getByRole("option", { name: "canny" }).click();
    await page.locator("#control_image_0 input[type=file]").setInputFiles(join(folder, "input.png"));
    await page.locator("#map_0 img").waitFor();
    const label = await page.locator("#weight_0").textContent();
    await page.locator("#generate").click();
    await shown(page, "picture");
    await page.locator("#map_0").scrollIntoViewIfNeeded();
    await picture(page, "conditions.png");
    return { label, details: await page.locator("#details").textContent() };
  },

  // A prompt's combinations side by side; what is no template is refused.
  async combinations() {
    const page = await open();
    await steps(page, 4);
    await page.getByText("More", { exact: true }).click();
    await page.locator("#combinations input").check();
    await write(page, "prompt", "a {red|blue} {circle|");
    await page.locator("#generate").click();
    await page.locator("#prompt").filter({ hasText: "cannot be read" }).waitFor();
    const refused = await page.locator("#prompt").textContent();
    await write(page, "prompt", "a {red|blue} {circle|star}");
    await page.locator("#generate").click();
    await says(page, "Done");
    await picture(page, "combinations.png");
    return { refused, labels: await page.locator("#view figcaption").allTextContents() };
  },

  // The page at work, for the README.
  async readme() {
    const page = await open();
    await steps(page, 20);
    for (const prompt of ["a red heart on a white background", "a large green triangle on a yellow background",
      "a blue circle on an orange background", "a pink square on a black background",
      "a large yellow star on a purple background", "a large orange heart on a cyan background"]) {
      await write(page, "prompt", prompt);
      await page.locator("#generate").click();
      await page.locator(`#details p`).filter({ hasText: prompt }).waitFor();
      await says(page, "Done");
    }
    await write(page, "prompt", "a large purple star on a green background");
    await page.locator("#generate").click();
    await says(page, "Step (9|1\\d) ");
    await picture(page, "readme.png");
    return { gallery: await page.locator("#gallery img").count() };
  },

  // Schedulers side by side; a picture's settings used again, and the picture edited.
  async compare() {
    const page = await open();
    await write(page, "prompt", "a large yellow star on a purple background");
    await steps(page, 6);
    await page.getByText("Compare schedulers").click();
    await page.locator("#compare").click();
    await says(page, "Done");
    const labels = await page.locator("#view figcaption").allTextContents();
    await picture(page, "compare.png");
    await page.locator("#gallery button").nth(1).click();
    await page.locator("#view .stage[data-count='1']").waitFor();
    const details = await page.locator("#details").textContent();
    await page.locator("#reuse").click();
    await page.waitForFunction(() => !document.querySelector("#random_seed input").checked);
    const used = {
      scheduler: await page.locator("#scheduler input").inputValue(),
      seed: await page.locator("#seed input, #seed textarea").inputValue(),
    };
    await page.locator("#change").click();
    await page.waitForFunction(() => document.querySelector("#brush img")?.naturalWidth > 0);
    return { labels, details, used, mode: await page.locator("#mode label.selected").textContent() };
  },
};

try {
  console.log(JSON.stringify({ ...(await scenarios[scenario]()), errors, outside }));
} catch (error) {
  for (const [index, page] of context.pages().entries()) {
    console.error(await page.locator("#settings, #status").allInnerTexts());
    await picture(page, `failed-${index}.png`);
  }
  throw error;
} finally {
  await browser.close();
}
