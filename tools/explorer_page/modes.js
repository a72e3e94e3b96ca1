// ------------------------------------------------- modes.js: move, draw a digit, watch it form, walk

const element = (id) => document.getElementById(id);
const code = (z) => `(${z.map((v) => v.toFixed(2).replace("-", "−")).join(",\u00a0")})`;
const digits = new Uint8Array(bytes(data.digits)), digitCount = digits.length / 784;
const digit = (n) => Float32Array.from(digits.subarray(784 * n, 784 * n + 784), (v) => v / 255);
const a = (label) => (label === "8" ? "an 8" : `a ${label}`);

/** A mode says what `draw` puts on a plane's overlay and beside it, and what `tell` says about it. */
const modes = {
  move: {
    draw(plane, g) {
      showPicture(plane.digit, decode(plane.name, ...plane.z));
      drawPoint(g, plane, plane.z);
      plane.inputs.forEach((input, axis) => {
        input.value = plane.z[axis];
        input.setAttribute("aria-valuetext", plane.z[axis].toFixed(2));
      });
    },
    tell: ({ name, z, codes }) =>
      `${name}: z = ${code(z)}.\nNearest test digits: ${nearest({ codes }, z).join(", ")}`,
  },

  draw: {
    draw(plane, g) {
      plane.q = subject && encode(plane.name, subject);
      if (!plane.q) return showPicture(plane.digit, new Float32Array(784));
      const out = logits(plane.name, plane.q.mu);
      plane.nats = reconstruction(out, subject);
      showPicture(plane.digit, out.map((logit) => 1 / (1 + Math.exp(-logit))));
      if (plane.q.sigma) drawRegion(g, plane, plane.q);
      else drawPoint(g, plane, plane.q.mu);
    },
    tell({ name, q, nats, codes }) {
      if (!q) return "Nothing is drawn yet.";
      const near = `Nearest test digits: ${nearest({ codes }, q.mu).join(", ")}`;
      const cost = `Reconstruction: ${nats.toFixed(1)} nats`;
      if (!q.sigma) return `z = ${code(q.mu)}\n${cost}\n${near}`;
      return `μ = ${code(q.mu)}, σ = ${code(q.sigma)}\n${cost}; KL: ${kl(q).toFixed(1)} nats\n${near}`;
    },
  },

  form: {
    draw() {},  // the dots are the background
    tell(plane) {
      let outside = 0, count = 0;
      for (const [, z1, z2] of shownCodes(plane)) {
        count++;
        outside += Math.hypot(z1, z2) > 3;
      }
      return `Codes of ${count} test digits.\nOutside the third ring: ${Math.round(100 * outside / count)} %`;
    },
  },

  walk: {
    draw(plane, g) {
      const [from, to] = ends.map((n) => encode(plane.name, digit(n)).mu);
      plane.line = Array.from({ length: 9 }, (_, i) => from.map((v, axis) => v + (to[axis] - v) * i / 8));
      outlined(g, () => {
        g.beginPath();
        g.moveTo(...place(plane, ...from));
        g.lineTo(...place(plane, ...to));
      });
      g.fillStyle = css("--ink");
      plane.line.forEach((z, i) => {
        circle(g, ...place(plane, ...z), i % 8 ? 5 : 9);
        g.fill();
        showPicture(plane.strip, decode(plane.name, ...z), i);
      });
    },
    tell: ({ line, codes }) => "Nearest test digit, step by step: "
      + line.map((z) => nearest({ codes }, z)[0]).join(" "),
  },
};

for (const input of document.querySelectorAll("#modes input")) {
  input.onchange = () => setMode(input.value);
}

function setMode(name) {
  document.body.dataset.mode = name;
  if (name !== "form") stopFilm();
  drawAll();
  all(tell);
}

// --------------------------------------------------------------------------------------------- move

let given = null;  // the row of the test digit that both planes show
function showGiven(n) {
  given = n;
  element("given").hidden = n === null;
  if (n !== null) showPicture(element("original"), digit(n));
}

function sameDigit(n) {
  all(({ name }) => move(name, ...encode(name, digit(n)).mu));
  showGiven(n);
  element("note").textContent =
    `One test digit, ${a(data.digitLabels[n])}, at each model’s own code for it; the VAE’s is μ.`;
}
element("same").onclick = () => sameDigit(Math.floor(Math.random() * digitCount));

element("prior").onclick = () => {
  const radius = Math.sqrt(-2 * Math.log(1 - Math.random())), angle = 2 * Math.PI * Math.random();
  const z = [radius * Math.cos(angle), radius * Math.sin(angle)];  // N(0, I), Box and Muller
  all(({ name }) => move(name, ...z));
  showGiven(null);
  element("note").textContent = "The same z from N(0, I) in both planes. It is the VAE’s prior; the AE "
    + "has none, and for it this is just a place.";
};

// --------------------------------------------------------------------------------------------- draw

let subject = null;  // the picture (784,) that both encoders see

function look() {
  sheet.frame = null;
  subject = prepare(inkOnSheet(), wide, wide);
  showPicture(element("seen"), subject ?? new Float32Array(784));
}

function sheetChanged() {
  sheet.frame ??= requestAnimationFrame(() => {
    look();
    all(soon);
  });
}

element("clear").onclick = clearSheet;

/** A button with a test digit of each class; pressed again, it has the class's next one. */
function thumbnails(id, press) {
  for (let label = 0; label < 10; label++) {
    const rows = Array.from(data.digitLabels, (_, n) => n).filter((n) => +data.digitLabels[n] === label);
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    if (!rows.length) continue;
    let at = -1;
    canvas.width = canvas.height = 28;
    button.className = "thumbnail";
    button.append(canvas);
    button.onclick = () => {
      at = (at + 1) % rows.length;
      button.show(rows[at]);
      press(rows[at], button);
    };
    button.show = (n) => {
      button.setAttribute("aria-label", `${a(String(label))}, test digit ${n + 1}`);
      button.row = n;
      showPicture(canvas, digit(n));
    };
    element(id).append(button);
    button.show(rows[0]);
  }
}

// --------------------------------------------------------------------------------------------- form

const time = element("time");
const moment = () => +time.value;
time.max = data.steps.length - 1;
time.oninput = () => {
  const words = `After ${data.steps[moment()]} of ${data.steps.at(-1)} training steps`;
  element("step").textContent = words;
  time.setAttribute("aria-valuetext", words);
  all((plane) => {
    drawBackground(plane);
    soon(plane);
  });
};

let playing = null;
function stopFilm() {
  clearInterval(playing);
  playing = null;
  element("play").textContent = "Play";
}
element("play").onclick = () => {  // never unasked
  if (playing) return stopFilm();
  if (moment() === +time.max) time.value = 0;
  element("play").textContent = "Stop";
  time.oninput();
  playing = setInterval(() => {
    time.value = moment() + 1;
    time.oninput();
    if (moment() === +time.max) stopFilm();
  }, 150);
};

// --------------------------------------------------------------------------------------------- walk

const ends = [0, 0];  // rows of two test digits
function walkEnd(which) {
  return (n, button) => {
    ends[which] = n;
    for (const other of button.parentElement.querySelectorAll("button"))
      other.setAttribute("aria-pressed", other === button);
    if (mode() === "walk") all(soon);
  };
}

// -------------------------------------------------------------------------------------------- start

setShades();
thumbnails("starts", (n) => copyToSheet(digit(n)));
thumbnails("from", walkEnd(0));
thumbnails("to", walkEnd(1));
for (const [id, label] of [["from", 1], ["to", 0]]) element(id).querySelectorAll("button")[label].click();
if (data.source !== "MNIST") document.querySelector("h1").append(" (offline sample)");
time.value = time.max;
time.oninput();
sameDigit(0);
setMode("move");

function repaint() {
  setShades();
  recolourSheet();
  for (const button of document.querySelectorAll(".thumbnail")) button.show(button.row);
  showPicture(element("seen"), subject ?? new Float32Array(784));
  showGiven(given);
  drawAll();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
addEventListener("resize", drawAll);  // zooming is one too

window.explorer = {  // for tests
  decode, encode, kl, move, prepare, reconstruction,
  logits: (name, z) => [...logits(name, z)],
  redraw: () => { look(); all(draw); },
  state: () => Object.fromEntries(Object.values(planes).map((plane) => [plane.name, {
    z: plane.z, q: plane.q, nats: plane.nats, ms: plane.ms, limits: plane.limits,
    drawn: plane.frame == null && sheet.frame == null,
  }])),
  subject: () => subject && [...subject],
};
