// Runs scenarios in one headless Chromium, each in a context of its own, so that they share nothing. A line of stdin
// asks for one: {"script", "scenario", "url", "folder"}, and what else the scenario wants. A line of stdout answers: what
// it returned, which errors the pages had, and which hosts they asked; or why it failed.
import { join } from "node:path";
import { createInterface } from "node:readline";
import chromium from "@sparticuz/chromium";
import { chromium as playwright } from "playwright-core";

chromium.setGraphicsMode = false;
// Not the package's own arguments, which turn off what browsers refuse to pages.
const browser = await playwright.launch({ args: ["--no-sandbox"], executablePath: await chromium.executablePath() });

async function run({ script, scenario, folder, ...more }) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
  context.setDefaultTimeout(60_000);
  const errors = [];
  const hosts = new Set();
  context.on("weberror", (error) => errors.push(String(error.error())));
  context.on("request", (request) => {
    const address = new URL(request.url());
    if (/^(http|ws)/.test(address.protocol)) hosts.add(address.host);
  });
  try {
    const scenarios = await import(`./${script}.mjs`);
    const seen = await scenarios[scenario]({ context, folder, ...more });
    return { seen, errors, hosts: [...hosts] };
  } catch (error) {
    const texts = [];
    for (const [index, page] of context.pages().entries()) {
      await page.screenshot({ path: join(folder, `failed-${index}.png`) });
      texts.push(await page.locator("body").innerText());
    }
    return { failed: [error.stack, ...texts, ...errors].join("\n") };
  } finally {
    await context.close();
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await run(JSON.parse(line))));
}
await browser.close();
