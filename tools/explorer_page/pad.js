// ------------------------------------------------------------------ pad.js: a drawing, prepared as MNIST's

/** Ink in [0, 1], (rows * columns,) -> (784,), or null for an empty sheet. As MNIST's digits were: the box
    of the ink shrinks to 20 pixels on its longer side, each new pixel the mean of what it covers, and the
    centre of mass goes to pixel (14, 14). */
function prepare(ink, rows, columns) {
  let top = rows, bottom = -1, left = columns, right = -1;
  for (let k = 0; k < ink.length; k++) {
    if (!ink[k]) continue;
    const row = Math.floor(k / columns), column = k % columns;
    [top, bottom] = [Math.min(top, row), Math.max(bottom, row)];
    [left, right] = [Math.min(left, column), Math.max(right, column)];
  }
  if (bottom < 0) return null;
  const height = bottom - top + 1, width = right - left + 1, scale = 20 / Math.max(height, width);
  const box = [height, width].map((side) => Math.max(1, Math.round(side * scale)));

  // Along columns first, then along rows: `covers` says with what share an old pixel is in a new one.
  const covers = (i, from, to) => {
    const low = i * from / to, high = (i + 1) * from / to, shares = [];
    for (let k = Math.floor(low); k < Math.min(from, Math.ceil(high)); k++)
      shares.push([k, (Math.min(k + 1, high) - Math.max(k, low)) * to / from]);
    return shares;
  };
  const narrow = new Float64Array(height * box[1]), small = new Float64Array(box[0] * box[1]);
  for (let j = 0; j < box[1]; j++)
    for (const [k, share] of covers(j, width, box[1]))
      for (let row = 0; row < height; row++)
        narrow[row * box[1] + j] += share * ink[(top + row) * columns + left + k];
  for (let i = 0; i < box[0]; i++)
    for (const [k, share] of covers(i, height, box[0]))
      for (let j = 0; j < box[1]; j++) small[i * box[1] + j] += share * narrow[k * box[1] + j];

  let mass = 0, down = 0, across = 0;
  small.forEach((value, k) => {
    mass += value;
    down += value * Math.floor(k / box[1]);
    across += value * (k % box[1]);
  });
  const [y, x] = [[down, box[0]], [across, box[1]]].map(([sum, side]) =>
    Math.min(Math.max(Math.round(14 - sum / mass), 0), 28 - side));  // all of it stays in the picture
  const picture = new Float32Array(784);
  small.forEach((value, k) => { picture[(y + Math.floor(k / box[1])) * 28 + x + k % box[1]] = value; });
  return picture;
}

const sheet = document.getElementById("sheet"), wide = sheet.width;  // 280: ten pixels for one of MNIST's
const paint = sheet.getContext("2d", { willReadFrequently: true });
const pen = { at: [wide / 2, wide / 2], down: false };

/** What is drawn: the opacity of each pixel, whatever the theme's ink. */
function inkOnSheet() {
  const pixels = paint.getImageData(0, 0, wide, wide).data;
  return Float32Array.from({ length: wide * wide }, (_, k) => pixels[4 * k + 3] / 255);
}

function stroke(from, to) {
  Object.assign(paint, { strokeStyle: css("--ink"), lineWidth: 20, lineCap: "round", lineJoin: "round" });
  paint.beginPath();
  paint.moveTo(...from);
  paint.lineTo(...to);
  paint.stroke();
  sheetChanged();
}

function clearSheet() {
  paint.clearRect(0, 0, wide, wide);
  sheetChanged();
}

/** A digit of MNIST's goes onto the sheet, ten pixels for one. */
function copyToSheet(x) {
  const ink = [1, 3, 5].map((at) => parseInt(css("--ink").slice(at, at + 2), 16));
  const image = new ImageData(wide, wide), pixel = wide / 28;
  for (let k = 0; k < wide * wide; k++) {
    const from = Math.floor(k / wide / pixel) * 28 + Math.floor(k % wide / pixel);
    image.data.set([...ink, Math.round(255 * x[from])], 4 * k);
  }
  paint.putImageData(image, 0, 0);
  sheetChanged();
}

/** Strokes drawn in one theme's ink get the other's. */
function recolourSheet() {
  paint.save();
  Object.assign(paint, { globalCompositeOperation: "source-in", fillStyle: css("--ink") });
  paint.fillRect(0, 0, wide, wide);
  paint.restore();
}

sheet.onpointerdown = sheet.onpointermove = (event) => {
  const at = sheet.getBoundingClientRect();
  const where = (e) => [(e.clientX - at.left) / at.width * wide, (e.clientY - at.top) / at.height * wide];
  if (event.type === "pointerdown") {
    sheet.setPointerCapture(event.pointerId);  // a stroke goes on beyond the edge
    pen.at = where(event);
    stroke(pen.at, pen.at);
  } else if (event.buttons) {
    for (const e of event.getCoalescedEvents?.().concat(event) ?? [event]) {  // a quick hand is not cut short
      stroke(pen.at, where(e));
      pen.at = where(e);
    }
  }
};

sheet.onkeydown = (event) => {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (event.ctrlKey || event.altKey || event.metaKey || !(way || event.key === " ")) return;
  event.preventDefault();  // or the page would scroll
  const old = pen.at;
  if (way) pen.at = old.map((value, axis) => Math.min(Math.max(value + 10 * way[axis], 10), wide - 10));
  else pen.down = !pen.down;
  if (pen.down) stroke(old, pen.at);
  showPen(true);
};
sheet.onfocus = () => showPen(true);
sheet.onblur = () => { pen.down = false; showPen(false); };
sheet.addEventListener("pointerdown", () => showPen(false));

/** Where the keyboard's pen is: a ring, filled while it draws. */
function showPen(shown) {
  const ring = document.getElementById("pen");
  ring.hidden = !shown;
  ring.classList.toggle("down", pen.down);
  [ring.style.left, ring.style.top] = pen.at.map((value) => `${100 * value / wide}%`);
}
