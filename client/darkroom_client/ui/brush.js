// The mask brush: strokes over the picture to inpaint, in the picture's own pixels. Its mask is a PNG with alpha.
window.darkroomBrush = {
  strokes: [], // {width, points: [[x, y], …]}
  url: "", // of the picture

  // Takes over the elements of brush.html, which are made anew whenever they are shown.
  attach(element) {
    [this.image, this.canvas] = [element.querySelector("img"), element.querySelector("canvas")];
    [this.size, this.buttons] = [element.querySelector("input"), element.querySelectorAll("button")];
    for (const button of this.buttons) {
      button.onclick = () => {
        this.strokes = button.dataset.do === "undo" ? this.strokes.slice(0, -1) : [];
        this.draw();
      };
    }
    this.image.onload = () => {
      [this.canvas.width, this.canvas.height] = [this.image.naturalWidth, this.image.naturalHeight];
      this.draw();
    };
    this.canvas.onpointerdown = (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      const width = (this.size.value / 100) * Math.min(this.canvas.width, this.canvas.height);
      this.strokes.push({ width, points: [this.at(event)] });
      this.draw();
    };
    this.canvas.onpointermove = (event) => {
      if (!this.canvas.hasPointerCapture(event.pointerId)) return;
      this.strokes.at(-1).points.push(this.at(event));
      this.draw();
    };
    this.show();
  },

  load(url) {
    if (url === this.url) return;
    [this.url, this.strokes] = [url, []];
    this.show();
  },

  show() {
    if (!this.image) return;
    this.image.parentElement.hidden = !this.url;
    if (this.url) this.image.src = this.url;
  },

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.x) * this.canvas.width / box.width, (event.clientY - box.y) * this.canvas.height / box.height];
  },

  draw() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: this.checks(context) });
    for (const { width, points } of this.strokes) {
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points) context.lineTo(...point);
      context.stroke();
    }
    for (const button of this.buttons) button.disabled = !this.strokes.length;
  },

  // A board of two colours, so that strokes are seen on a picture of any; opaque, as the mask is their alpha.
  checks(context) {
    const wide = Math.max(1, Math.round(Math.min(this.canvas.width, this.canvas.height) / 48));
    const tile = Object.assign(document.createElement("canvas"), { width: 2 * wide, height: 2 * wide });
    const paint = tile.getContext("2d");
    for (const [colour, x, y] of [["#ff5c38", 0, 0], ["#fff3ef", 0, wide], ["#fff3ef", wide, 0], ["#ff5c38", wide, wide]]) {
      paint.fillStyle = colour;
      paint.fillRect(x, y, wide, wide);
    }
    return context.createPattern(tile, "repeat");
  },

  mask() {
    return this.strokes.length ? this.canvas.toDataURL() : "";
  },
};
