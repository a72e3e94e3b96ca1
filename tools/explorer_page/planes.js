// ----------------------------------------------------------------- planes.js: two code planes and a point

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const mode = () => document.body.dataset.mode;

const planes = {};
for (const [name, model] of Object.entries(data.models)) {
  const card = document.getElementById("card").content.cloneNode(true).firstElementChild;
  const find = (selector) => card.querySelector(selector);
  const plane = planes[name] = {
    name, card, background: find(".background"), overlay: find(".overlay"), digit: find(".digit"),
    strip: find(".strip"), box: find(".plane"), status: find(".status"),
    inputs: [...card.querySelectorAll("input")], limits: model.limits, marks: model.marks,
    codes: floats(model.codes), film: new Int16Array(bytes(model.film.places)), filmScale: model.film.scale,
    encoder: model.encoder.map(unpack), decoder: model.decoder.map(unpack), z: [0, 0], q: null, ms: 0,
  };
  card.style.setProperty("--accent", `var(--${name})`);
  find("h2").textContent = model.title;
  find(".legend").textContent = model.legend;
  plane.box.setAttribute("aria-label",
    `Code plane of the ${name}. Arrow keys move the code, Shift makes the steps larger, Home goes to zero.`);
  plane.digit.setAttribute("aria-label", `What the ${name}'s decoder makes of the code`);
  plane.strip.setAttribute("aria-label", `What the ${name}'s decoder makes of nine codes on the line`);
  plane.inputs.forEach((input, axis) => {
    [input.min, input.max] = plane.limits[axis];
    input.setAttribute("aria-label", `${name}, z${axis + 1}`);
    input.oninput = () => move(name, ...plane.z.map((old, i) => (i === axis ? +input.value : old)));
  });
  listen(plane);
  document.getElementById("cards").append(card);
}

/** The code goes where the mouse is, or a pressed finger or pen. */
function listen(plane) {
  const [[left, right], [bottom, top]] = plane.limits;
  const follow = (event) => {
    const at = plane.box.getBoundingClientRect();
    move(plane.name, left + (right - left) * (event.clientX - at.left) / at.width,
      top - (top - bottom) * (event.clientY - at.top) / at.height);
  };
  plane.box.onpointermove = (event) => {
    if (mode() === "move" && (event.pointerType === "mouse" || event.buttons)) follow(event);
  };
  plane.box.onpointerdown = (event) => {
    if (mode() !== "move") return;
    plane.box.setPointerCapture(event.pointerId);  // a drag goes on beyond the edge
    follow(event);
  };
  plane.box.onkeydown = (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey || !(way || event.key === "Home")) return;
    if (mode() !== "move") return;
    event.preventDefault();  // or the page would scroll
    const step = (right - left) / (event.shiftKey ? 20 : 100);
    move(plane.name, ...(way ? plane.z.map((value, axis) => value + step * way[axis]) : [0, 0]));
  };
}

/** Everything that moves a code by hand comes through here. The code stays inside the plane. */
function move(name, z1, z2) {
  const plane = planes[name], { limits } = plane;
  plane.z = [z1, z2].map((z, axis) => Math.min(Math.max(z, limits[axis][0]), limits[axis][1]));
  soon(plane);
}

/** Draws within a frame, once however many events it brings; and tells, three times a second at most,
    because a screen reader cannot follow 60 sentences a second. */
function soon(plane) {
  plane.frame ??= requestAnimationFrame(() => { plane.frame = null; draw(plane); });
  plane.timer ??= setTimeout(() => { plane.timer = null; tell(plane); }, 300);
}

const all = (task) => Object.values(planes).forEach(task);

// ------------------------------------------------------------------------------------------ drawing

let shades;  // the colour of pixel values 0 to 255: paper to ink
function setShades() {
  const [paper, ink] = ["--paper", "--ink"].map((name) =>
    [1, 3, 5].map((at) => parseInt(css(name).slice(at, at + 2), 16)));
  shades = Array.from({ length: 256 }, (_, v) => paper.map((p, c) => p + (ink[c] - p) * v / 255));
}

/** A picture (784,) at column `at` of a row of pictures. */
function showPicture(canvas, x, at = 0) {
  const image = new ImageData(28, 28);
  x.forEach((value, i) => image.data.set([...shades[Math.round(255 * value)], 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 28 * at, 0);
}

/** A cleared canvas as sharp as the screen, measured in CSS pixels. */
function fresh(canvas) {
  const sharp = devicePixelRatio || 1, size = Math.round(canvas.clientWidth * sharp);
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const g = canvas.getContext("2d");
  g.setTransform(sharp, 0, 0, sharp, 0, 0);
  g.clearRect(0, 0, size, size);
  return g;
}

function place(plane, z1, z2) {  // code -> CSS pixels
  const [[left, right], [bottom, top]] = plane.limits, size = plane.box.clientWidth;
  return [(z1 - left) / (right - left) * size, (top - z2) / (top - bottom) * size];
}

function circle(g, x, y, radius) {
  g.beginPath();
  g.arc(x, y, radius, 0, 2 * Math.PI);
}

/** The codes that the plane shows: all, or some of them at a moment of training. */
function* shownCodes(plane) {
  if (mode() !== "form") {
    for (let n = 0; n < data.labels.length; n++) yield [n, plane.codes[2 * n], plane.codes[2 * n + 1]];
  } else {
    const count = plane.film.length / data.steps.length / 2, start = 2 * count * moment();
    for (let n = 0; n < count; n++)
      yield [n, ...[0, 1].map((axis) => plane.film[start + 2 * n + axis] * plane.filmScale)];
  }
}

/** Dots, rings, axes and the classes' digits: drawn again for a new size, theme or moment of training. */
function drawBackground(plane) {
  const g = fresh(plane.background), size = plane.box.clientWidth;
  const ink = css("--ink"), paper = css("--paper"), quiet = css("--quiet");
  const font = parseFloat(getComputedStyle(plane.card).fontSize), forming = mode() === "form";
  const [x0, y0] = place(plane, 0, 0), [[left, right], [bottom, top]] = plane.limits;
  g.strokeStyle = quiet;
  g.strokeRect(0.5, 0.5, size - 1, size - 1);
  g.globalAlpha = forming ? 0.9 : 0.6;
  for (const [n, z1, z2] of shownCodes(plane)) {
    g.fillStyle = data.colours[data.labels[n]];
    circle(g, ...place(plane, z1, z2), forming ? 3.5 : 2.2);
    g.fill();
  }
  g.globalAlpha = 1;
  g.strokeStyle = ink;
  g.lineWidth = plane.name === "VAE" ? 2 : 1;
  for (const radius of [1, 2, 3]) {
    circle(g, x0, y0, radius / (right - left) * size);
    g.stroke();
  }
  // Two or three numbers at each axis tell the scale. A halo keeps them legible on the dots.
  g.textBaseline = "middle";
  g.lineJoin = "round";
  const write = (text, x, y) => { g.strokeText(text, x, y); g.fillText(text, x, y); };
  g.font = `${font}px system-ui, sans-serif`;
  Object.assign(g, { fillStyle: ink, strokeStyle: paper, lineWidth: 5 });
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((s) => (right - left) / s < 6);
  for (let tick = -200 * step; tick <= 200 * step; tick += step) {
    const [x, y] = place(plane, tick, tick), label = String(tick).replace("-", "−");
    if (x > 2 * font && x < size - 2 * font) {
      g.textAlign = "center";
      write(label, x, size - 0.9 * font);
      g.fillRect(x - 1, size - 6, 2, 6);
    }
    if (y > 2 * font && y < size - 2 * font) {
      g.textAlign = "left";
      write(label, 0.6 * font, y);
      g.fillRect(0, y - 1, 6, 2);
    }
  }
  // Each class's digit near the median of its codes, so that nothing is told by colour alone.
  g.font = `bold ${font}px system-ui, sans-serif`;
  g.textAlign = "center";
  for (const [digit, z1, z2] of forming ? mediansNow(plane) : plane.marks) {
    const [x, y] = place(plane, z1, z2);
    circle(g, x, y, 0.68 * font);
    Object.assign(g, { fillStyle: paper, strokeStyle: data.colours[digit], lineWidth: 2.5 });
    g.fill();
    g.stroke();
    g.fillStyle = ink;
    g.fillText(digit, x, y + 1);
  }
}

/** [digit, z1, z2] of each class that has somewhere to stand; none while all lie on one heap. */
function mediansNow(plane) {
  const codes = Array.from({ length: 10 }, () => []);
  for (const [n, z1, z2] of shownCodes(plane)) codes[data.labels[n]].push([z1, z2]);
  const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
  const marks = codes.flatMap((of, digit) => (of.length
    ? [[String(digit), ...[0, 1].map((axis) => median(of.map((z) => z[axis])))]] : []));
  const room = (plane.limits[0][1] - plane.limits[0][0]) / 14;
  return marks.filter((mark, i) => marks.every((other, j) =>
    j >= i || Math.hypot(mark[1] - other[1], mark[2] - other[2]) > room));
}

/** In ink, with a halo of paper below it, so that it is seen on any dot. */
function outlined(g, path) {
  for (const [colour, width] of [[css("--paper"), 7], [css("--ink"), 3]]) {
    Object.assign(g, { strokeStyle: colour, lineWidth: width });
    path();
    g.stroke();
  }
}

function drawPoint(g, plane, z) {
  const [x, y] = place(plane, ...z);
  outlined(g, () => {
    circle(g, x, y, 9);
    for (const [right, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      g.moveTo(x + 9 * right, y + 9 * down);
      g.lineTo(x + 18 * right, y + 18 * down);
    }
  });
}

/** q(z|x): ellipses of one and of two standard deviations round mu. */
function drawRegion(g, plane, { mu, sigma }) {
  const [x, y] = place(plane, ...mu), unit = plane.box.clientWidth / (plane.limits[0][1] - plane.limits[0][0]);
  for (const times of [2, 1]) outlined(g, () => {
    g.beginPath();
    g.ellipse(x, y, times * sigma[0] * unit, times * sigma[1] * unit, 0, 0, 2 * Math.PI);
  });
  g.fillStyle = css("--ink");
  circle(g, x, y, 3);
  g.fill();
}

/** What changes with every event: the point, its picture, and what belongs to the mode. */
function draw(plane) {
  const start = performance.now(), g = fresh(plane.overlay);
  modes[mode()].draw(plane, g);
  plane.ms = performance.now() - start;
}

function tell(plane) {
  plane.status.textContent = modes[mode()].tell(plane);
}

function drawAll() {
  setShades();
  all((plane) => {
    drawBackground(plane);
    draw(plane);
  });
}

/** The labels of the five test digits whose codes lie nearest. */
function nearest({ codes }, z) {
  const squared = (n) => (codes[2 * n] - z[0]) ** 2 + (codes[2 * n + 1] - z[1]) ** 2;
  const order = Array.from(data.labels, (_, n) => [squared(n), n]).sort((a, b) => a[0] - b[0]);
  return order.slice(0, 5).map(([, n]) => data.labels[n]);
}
