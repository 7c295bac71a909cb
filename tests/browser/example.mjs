// Drives the browser example in headless Chromium: node example.mjs URL FOLDER. Prints what it saw, as JSON.
import { join } from "node:path";
import chromium from "@sparticuz/chromium";
import { chromium as playwright } from "playwright-core";

const [url, folder] = process.argv.slice(2);
const browser = await playwright.launch({ args: chromium.args, executablePath: await chromium.executablePath() });
const page = await browser.newPage({ viewport: { width: 480, height: 900 } });
const errors = [];
page.on("pageerror", (error) => errors.push(String(error)));
await page.goto(url);
await page.evaluate(() => {
  window.shown = [];
  new MutationObserver(() => window.shown.push(document.querySelector("img").src)).observe(
    document.querySelector("img"), { attributeFilter: ["src"] });
});
const press = (name) => page.getByRole("button", { name }).click();
const says = (role, text) => page.getByRole(role).filter({ hasText: text }).waitFor();

await page.getByLabel("Seed").fill("9007199254740993");
await press("Generate");
await page.locator("img[data-kind=picture]").waitFor();
const made = {
  shown: await page.evaluate(() => window.shown.length),
  size: await page.locator("img").evaluate((image) => [image.naturalWidth, image.naturalHeight]),
  status: await page.getByRole("status").textContent(),
};
await page.screenshot({ path: join(folder, "made.png") });

await page.getByLabel("Steps").fill("0");
await press("Generate");
await says("alert", "parameters.num_inference_steps");
const refused = await page.getByRole("alert").textContent();

await page.getByLabel("Steps").fill("400");
await press("Generate");
await says("status", "step");
await press("Stop");
await says("status", "stopped");

console.log(JSON.stringify({ made, refused, errors }));
await browser.close();
