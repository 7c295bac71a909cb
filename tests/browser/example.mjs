// What is done on the page of client/examples/browser. Returns what it saw.
import { join } from "node:path";

export async function develop({ context, url, folder }) {
  const page = await context.newPage();
  await page.setViewportSize({ width: 480, height: 900 });
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
  return { made, refused };
}
