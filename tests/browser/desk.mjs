// The page `darkroom ui` as a person at a desk uses it.
import { join } from "node:path";

export class Desk {
  constructor(page, folder) {
    this.page = page;
    this.folder = folder;
  }

  // Opens the page, and waits until it knows what the server offers.
  static async at({ context, url, folder }) {
    const desk = new Desk(await context.newPage(), folder);
    await desk.load(() => desk.page.goto(url));
    return desk;
  }

  async load(go) {
    await go();
    await this.page.locator("#server p").waitFor();
  }

  field = (name) => this.page.locator(`#${name} textarea, #${name} input:not([type=range])`).first();
  write = (name, text) => this.field(name).fill(text);
  value = (name) => this.field(name).inputValue();
  text = async (id) => (await this.page.locator(`#${id}`).first().textContent()).trim();
  press = (id) => this.page.locator(`#${id}`).click();
  mode = (name) => this.page.locator("#mode label").filter({ hasText: name }).click();
  kind = (name) => this.page.locator("#template label").filter({ hasText: name }).click();
  unfold = (title) => this.page.getByText(title, { exact: true }).first().click();

  // A number beside a slider is taken, and the slider moved, when its field loses the focus. A field that has
  // just been unfolded is drawn once more, with its old value: a person types later, and a script types again.
  async number(name, value) {
    const [field, slider] = ["number", "range"].map((type) => this.page.locator(`#${name} input[type=${type}]`));
    do {
      await field.fill(String(value));
      await field.blur();
    } while ((await slider.inputValue()) !== String(value));
  }

  steps = (count) => this.number("steps", count);

  async choose(name, option) {
    await this.page.locator(`#${name} input`).first().click();
    await this.page.getByRole("option", { name: option }).click();
  }

  upload = (name) => this.page.locator(`#${name} input[type=file]`).setInputFiles(join(this.folder, "input.png"));

  async ask(prompt, count) {
    await this.write("prompt", prompt);
    await this.steps(count);
  }

  // What lasts longer than a reload, however busy the machine is.
  async askMuch(prompt) {
    for (const edge of ["width", "height"]) await this.number(edge, 128);
    await this.ask(prompt, 150);
  }

  async make(prompt, count) {
    await this.ask(prompt, count);
    await this.press("generate");
    await this.shown("picture");
  }

  shown = (kind) => this.page.locator(`#view img[data-kind=${kind}]`).first().waitFor();
  alt = () => this.page.locator("#view img").first().getAttribute("alt");
  says = (text) => this.page.locator("#status p").filter({ hasText: new RegExp(`^${text}`) }).waitFor();
  beside = (name, text) => this.page.locator(`#${name}`).filter({ hasText: text }).first().waitFor();
  without = (name, text) => this.page.locator(`#${name}`).filter({ hasNotText: text }).first().waitFor();
  kept = () => this.page.locator("#gallery img").first().waitFor();
  made = () => this.page.locator("#gallery img").count();
  labels = () => this.page.locator("#view figcaption").allTextContents();
  picture = (name) => this.page.screenshot({ path: join(this.folder, `${name}.png`) });

  // The bytes of the picture that is shown.
  async bytes() {
    const address = await this.page.locator("#view img").first().getAttribute("src");
    return (await this.page.request.get(new URL(address, this.page.url()).href)).body();
  }

  // Counts the pictures that the page shows from now on.
  observe = () => this.page.evaluate(() => {
    window.shown = new Set();
    new MutationObserver(() => {
      for (const image of document.querySelectorAll("#view img")) window.shown.add(image.dataset.kind + image.src);
    }).observe(document.querySelector("#view"), { subtree: true, childList: true, attributes: true });
  });

  previews = () => this.page.evaluate(() => [...window.shown].filter((each) => each.startsWith("preview")).length);

  // Brushes over the middle of the picture to inpaint.
  async brush() {
    await this.page.waitForFunction(() => document.querySelector("#brush img")?.naturalWidth > 0);
    const canvas = this.page.locator("#brush canvas");
    await canvas.scrollIntoViewIfNeeded();
    const box = await canvas.boundingBox();
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    await this.page.mouse.move(x - 30, y);
    await this.page.mouse.down();
    for (const step of [-15, 0, 15, 30]) await this.page.mouse.move(x + step, y);
    await this.page.mouse.up();
  }
}
