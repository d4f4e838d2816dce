"use strict";
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // -- numbers ---------------------------------------------------------------------------------------------------------

  function unpacked(text, kind) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return Array.from(new kind(bytes.buffer), (value) => (Number.isFinite(value) ? value : null));
  }

  function number(value) {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 1e-3 || size >= 1e7) return value.toExponential(2).replace("e+", "e");
    return new Intl.NumberFormat("en", { maximumSignificantDigits: size >= 1e4 ? 6 : 4 }).format(value);
  }

  function shortNumber(value) {
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
    if (size > 0 && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
    return `${+value.toPrecision(4)}`;
  }

  // -- light and dark --------------------------------------------------------------------------------------------------

  function remembered(value) {
    try { // a page that is opened as a file may be denied storage
      if (value !== undefined) localStorage.setItem("bigtrain-report-theme", value);
      return localStorage.getItem("bigtrain-report-theme");
    } catch { return null; }
  }

  const themes = all("[name=theme]");
  function setTheme(value) {
    root.dataset.theme = value;
    themes.forEach((input) => { input.checked = input.value === value; });
    charts.forEach((chart) => chart.draw());
  }

  // -- curves ----------------------------------------------------------------------------------------------------------

  const state = { scale: "linear", axis: "step", smoothing: 3, shown: content.runs.map(() => true) };
  const axes = content.runs.map(({ axes }) => {
    if (!axes) return null;
    const read = Object.fromEntries(Object.entries(axes).map(([name, text]) => [name, unpacked(text, Float64Array)]));
    if (read.wall) read.wall = read.wall.map((seconds) => (seconds === null ? null : seconds / 3600));
    return read;
  });

  function smoothed(values, strength) {
    // A Gaussian over neighbouring points, which moves no peak to a later step as a running mean does.
    const sigma = (strength / 10) ** 2 * values.length * 0.06;
    if (strength === 0 || sigma < 0.4) return values;
    const reach = Math.ceil(3 * sigma);
    const weights = Array.from({ length: reach + 1 }, (_, distance) => Math.exp(-0.5 * (distance / sigma) ** 2));
    return values.map((value, at) => {
      if (value === null) return null;
      let sum = 0, total = 0;
      for (let other = Math.max(0, at - reach); other <= Math.min(values.length - 1, at + reach); other++) {
        if (values[other] === null) continue;
        const weight = weights[Math.abs(other - at)];
        sum += weight * values[other];
        total += weight;
      }
      return sum / total;
    });
  }

  function nearest(xs, x) {
    // The number of the point that is nearest to x; xs ascend.
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  }

  class Chart {
    constructor(figure) {
      const { curves, points } = content.charts[Number(figure.dataset.chart)];
      this.figure = figure;
      this.place = one(".plot", figure);
      this.at = one(".chart-at", figure);
      this.points = Boolean(points);
      this.curves = Object.entries(curves).map(([run, packed]) => {
        const read = (name) => (packed[name] ? unpacked(packed[name], Float32Array) : null);
        const mean = read("mean");
        const own = packed.step ? { step: unpacked(packed.step, Float64Array) } : axes[run];
        return { run: Number(run), mean, low: read("low") || mean, high: read("high") || mean, thinned: Boolean(packed.low), axes: own };
      });
      this.cells = Object.fromEntries(all("[data-run]", figure).map((cell) => [cell.dataset.run, cell]));
      this.place.addEventListener("keydown", (event) => this.onKey(event));
      this.place.addEventListener("blur", () => this.read(null));
      this.width = 0;
      new ResizeObserver(() => this.resize()).observe(this.place);
    }

    get axis() { return this.points ? "step" : state.axis; }

    xs(curve) { return curve.axes[this.axis] || curve.axes.step; }

    visible() { return this.curves.filter((curve) => state.shown[curve.run]); }

    isLog() {
      return state.scale === "log" && this.curves.every((curve) => curve.low.every((value) => value === null || value > 0));
    }

    resize() {
      const width = this.place.clientWidth;
      if (width === this.width || width === 0) return;
      this.width = width;
      if (this.plot) this.plot.setSize({ width, height: this.place.clientHeight });
      else this.draw();
    }

    range() {
      const values = this.visible().flatMap((curve) => curve.low.concat(curve.high)).filter((value) => value !== null);
      let low = values.length ? values.reduce((a, b) => Math.min(a, b)) : 0;
      let high = values.length ? values.reduce((a, b) => Math.max(a, b)) : 1;
      if (this.isLog()) {
        const room = Math.max((high / low) ** 0.05, 1.02);
        return [low / room, high * room];
      }
      const room = high > low ? 0.06 * (high - low) : Math.abs(high) * 0.1 || 1;
      return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
    }

    draw() {
      if (!this.width) return;
      const zoom = this.zoom;
      if (this.plot) this.plot.destroy();
      const tables = this.curves.map((curve) => {
        const line = this.points ? curve.mean : smoothed(curve.mean, state.smoothing);
        return [this.xs(curve), line];
      });
      const data = tables.length ? uPlot.join(tables) : [[0], [null]];
      const ink = colour("--soft"), rule = colour("--grid"), font = `11px ${colour("--sans")}`;
      const log = this.isLog();
      const ends = data[0].length === 1 ? [data[0][0] - 1, data[0][0] + 1] : [data[0][0], data[0][data[0].length - 1]];
      const axis = { stroke: ink, font, grid: { stroke: rule, width: 1 }, ticks: { show: false }, gap: 4 };
      this.plot = new uPlot({
        width: this.width,
        height: this.place.clientHeight,
        legend: { show: false },
        padding: [6, 16, 0, 0],
        cursor: {
          y: false,
          points: { show: false },
          drag: { x: true, y: false },
          sync: this.points ? undefined : { key: "curves", setSeries: false },
        },
        scales: {
          x: { time: false, range: (_, low, high) => (this.zoom ? [low, high] : ends) },
          y: { distr: log ? 3 : 1, range: () => this.range() },
        },
        axes: [
          { ...axis, size: 24, space: 64, values: (_, ticks) => ticks.map(shortNumber) },
          { ...axis, size: 50, space: 30, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : shortNumber(tick))) },
        ],
        series: [{}, ...this.curves.map((curve) => this.series(curve))],
        hooks: {
          drawAxes: [(plot) => this.beneath(plot)],
          draw: [(plot) => this.marks(plot)],
          setCursor: [(plot) => this.onCursor(plot)],
          setSelect: [() => { this.zoom = true; }],
        },
      }, data, this.place);
      this.plot.over.addEventListener("dblclick", () => { this.unzoom(); });
      if (!zoom) this.zoom = false;
      this.read(null);
    }

    unzoom() {
      this.zoom = false;
      this.draw();
    }

    series(curve) {
      return {
        show: state.shown[curve.run],
        stroke: colour(`--c${curve.run % 8}`),
        width: 1.75,
        dash: Math.floor(curve.run / 8) % 2 ? [6, 4] : undefined,
        spanGaps: true,
        points: { show: this.points || curve.mean.length === 1, size: 6, fill: colour(`--c${curve.run % 8}`) },
      };
    }

    beneath(plot) {
      // What was measured, under the smoothed line: the band from minimum to maximum, or the rows themselves.
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      for (const curve of this.visible()) {
        const xs = this.xs(curve), ink = colour(`--c${curve.run % 8}`);
        ctx.strokeStyle = ctx.fillStyle = ink;
        const x = (at) => plot.valToPos(xs[at], "x", true), y = (value) => plot.valToPos(value, "y", true);
        if (this.points) this.whiskers(ctx, curve, x, y);
        else if (curve.thinned) this.band(ctx, curve, x, y);
        else this.rows(ctx, curve, x, y);
      }
      ctx.restore();
    }

    whiskers(ctx, curve, x, y) {
      ctx.globalAlpha = 0.55;
      ctx.lineWidth = 1.5 * devicePixelRatio;
      curve.mean.forEach((_, at) => {
        if (curve.low[at] === null || curve.low[at] === curve.high[at]) return;
        const half = 3 * devicePixelRatio;
        ctx.beginPath();
        for (const end of [curve.low[at], curve.high[at]]) {
          ctx.moveTo(x(at) - half, y(end));
          ctx.lineTo(x(at) + half, y(end));
        }
        ctx.moveTo(x(at), y(curve.low[at]));
        ctx.lineTo(x(at), y(curve.high[at]));
        ctx.stroke();
      });
    }

    band(ctx, curve, x, y) {
      // A bar for each point, so that a single row that stands out is as high as it was.
      ctx.globalAlpha = 0.34;
      ctx.lineWidth = 1 * devicePixelRatio;
      const last = curve.mean.length - 1;
      curve.mean.forEach((_, at) => {
        if (curve.low[at] === null) return;
        const here = x(at), next = at < last ? x(at + 1) : here;
        const top = y(curve.high[at]), height = Math.max(y(curve.low[at]) - top, devicePixelRatio);
        ctx.fillRect(here, top, Math.max(next - here, devicePixelRatio), height);
      });
    }

    rows(ctx, curve, x, y) {
      if (state.smoothing === 0) return;
      ctx.globalAlpha = 0.38;
      ctx.lineWidth = 1 * devicePixelRatio;
      ctx.beginPath();
      let drawing = false;
      curve.mean.forEach((value, at) => {
        if (value === null) return;
        if (drawing) ctx.lineTo(x(at), y(value)); else ctx.moveTo(x(at), y(value));
        drawing = true;
      });
      ctx.stroke();
    }

    marks(plot) {
      // Where a run was started again (a dashed line), and warnings (a triangle at the foot).
      const { ctx, bbox } = plot, ratio = devicePixelRatio;
      ctx.save();
      for (const curve of this.visible()) {
        if (this.points) continue;
        const { starts, warnings } = content.runs[curve.run], xs = this.xs(curve), steps = curve.axes.step;
        const place = (step) => plot.valToPos(xs[nearest(steps, step)], "x", true);
        const inside = (x) => x >= bbox.left - 1 && x <= bbox.left + bbox.width + 1;
        ctx.strokeStyle = ctx.fillStyle = content.runs.length > 1 ? colour(`--c${curve.run % 8}`) : colour("--soft");
        ctx.lineWidth = ratio;
        ctx.setLineDash([3 * ratio, 3 * ratio]);
        for (const x of starts.map(place).filter(inside)) {
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
        }
        ctx.fillStyle = colour("--warn");
        for (const x of warnings.map(place).filter(inside)) {
          const foot = bbox.top + bbox.height;
          ctx.beginPath();
          ctx.moveTo(x - 4 * ratio, foot);
          ctx.lineTo(x + 4 * ratio, foot);
          ctx.lineTo(x, foot - 7 * ratio);
          ctx.fill();
        }
      }
      ctx.restore();
    }

    onCursor(plot) {
      const { left } = plot.cursor;
      this.read(left === undefined || left < 0 ? null : plot.posToVal(left, "x"));
    }

    read(x) {
      // The values at x; without it the last ones.
      let said = "";
      for (const curve of this.curves) {
        const xs = this.xs(curve), at = x === null ? curve.mean.findLastIndex((value) => value !== null) : nearest(xs, x);
        const cell = this.cells[curve.run];
        if (at < 0 || curve.mean[at] === null) { cell.textContent = "–"; continue; }
        const spread = curve.low[at] !== curve.high[at] ? ` (${number(curve.low[at])} to ${number(curve.high[at])})` : "";
        cell.textContent = number(curve.mean[at]) + spread;
        cell.parentElement.classList.toggle("hidden-run", !state.shown[curve.run]);
        if (!said) said = this.where(curve, at, x === null);
      }
      this.at.textContent = (this.isLog() || state.scale === "linear" ? "" : "linear: not positive · ") + said;
    }

    where(curve, at, isLast) {
      const { step, first } = curve.axes, value = this.xs(curve)[at];
      if (isLast) return "last";
      if (this.axis === "wall" && curve.axes.wall) return `${number(value)} h`;
      if (this.axis === "images" && curve.axes.images) return `${value.toLocaleString("en")} images`;
      const from = first && first[at] !== step[at] ? `${first[at].toLocaleString("en")}–` : "";
      return `step ${from}${step[at].toLocaleString("en")}`;
    }

    onKey(event) {
      if (event.key === "0" || event.key === "Escape") { this.unzoom(); return; }
      const move = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity }[event.key];
      if (move === undefined || !this.curves.length) return;
      event.preventDefault();
      const xs = this.plot.data[0], left = this.plot.cursor.left;
      const now = left >= 0 ? nearest(xs, this.plot.posToVal(left, "x")) : move < 0 ? xs.length : -1;
      const next = Math.max(0, Math.min(xs.length - 1, now + move));
      this.plot.setCursor({ left: this.plot.valToPos(xs[next], "x"), top: 10 });
    }
  }

  const charts = [];
  const redraw = () => charts.forEach((chart) => { chart.zoom = false; chart.draw(); });

  // -- pictures --------------------------------------------------------------------------------------------------------

  function startSlider(place) {
    const range = one("input", place);
    if (!range) return;
    const shown = one(".step-shown", place), earlier = one(".previous", place), later = one(".next", place);
    const frames = all("figure", place).map((figure) => ({
      image: one("img", figure),
      caption: one(".shown-step", figure),
      pictures: content.pictures[Number(figure.dataset.run)].filter((picture) => picture.group === place.dataset.group),
    }));
    for (const { image, pictures } of frames) {
      pictures[pictures.length - 1].url = image.src;
      const [width, height] = pictures.reduce(([w, h], { size }) => (size[1] / size[0] > h / w ? size : [w, h]), pictures[0].size);
      image.width = width; // the tallest of them, so that nothing moves when another is shown
      image.height = height;
      image.style.aspectRatio = `${width} / ${height}`;
    }
    const steps = [...new Set(frames.flatMap(({ pictures }) => pictures.map(({ step }) => step)))].sort((a, b) => a - b);
    function show() {
      const at = Number(range.value), step = steps[at], text = `step ${step.toLocaleString("en")}`;
      shown.textContent = text;
      range.setAttribute("aria-valuetext", text);
      earlier.disabled = at === 0;
      later.disabled = at === steps.length - 1;
      for (const { image, caption, pictures } of frames) {
        const picture = pictures.findLast((one) => one.step <= step) || pictures[0];
        if (image.src !== picture.url) image.src = picture.url;
        if (caption) caption.textContent = `step ${picture.step.toLocaleString("en")}`;
      }
      thumbnails.forEach(({ button, step: own }) => button.classList.toggle("current", own === step));
    }
    const thumbnails = contactSheet(one(".sheet", place), frames[0].pictures, (step) => { range.value = steps.indexOf(step); show(); });
    const move = (by) => { range.value = Number(range.value) + by; show(); };
    range.addEventListener("input", show);
    earlier.addEventListener("click", () => move(-1));
    later.addEventListener("click", () => move(1));
    show();
  }

  function contactSheet(sheet, pictures, onChosen) {
    // Small pictures of up to MOST steps, for the pointer: the slider is what the keyboard moves.
    const MOST = 20;
    if (!sheet) return [];
    const count = Math.min(MOST, pictures.length);
    const chosen = Array.from({ length: count }, (_, at) => pictures[Math.round((at * (pictures.length - 1)) / (count - 1))]);
    return chosen.map(({ step, url, size }) => {
      const button = document.createElement("button"), image = new Image();
      button.type = "button";
      button.tabIndex = -1;
      image.alt = "";
      [image.width, image.height] = size;
      image.src = url;
      button.append(image, step.toLocaleString("en"));
      button.addEventListener("click", () => onChosen(step));
      sheet.append(button);
      return { button, step };
    });
  }

  // -- the start -------------------------------------------------------------------------------------------------------

  const stored = remembered();
  if (["auto", "light", "dark"].includes(stored)) setTheme(stored);
  all(".slider").forEach(startSlider);
  all(".chart").forEach((figure) => charts.push(new Chart(figure)));
  themes.forEach((input) => input.addEventListener("change", () => { remembered(input.value); setTheme(input.value); }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.draw()));
  all("[name=scale]").forEach((input) => input.addEventListener("change", () => { state.scale = input.value; redraw(); }));
  all("[name=axis]").forEach((input) => input.addEventListener("change", () => { state.axis = input.value; redraw(); }));
  all(".shows-run").forEach((input) => input.addEventListener("change", () => { state.shown[Number(input.value)] = input.checked; redraw(); }));
  all("[name=smoothing]").forEach((input) => input.addEventListener("input", () => {
    state.smoothing = Number(input.value);
    one(".smoothing-shown").textContent = input.value;
    charts.forEach((chart) => chart.draw());
  }));
  all(".toolbar").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
})();
