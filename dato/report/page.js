// The page's behaviour: charts, and one chosen point that the rest of the page describes. Data is shown as text only.
(() => {
  "use strict";
  const { el, copyText, scheduleWords, scheduleStrip, scheduleKey } = datoParts;
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs, several = runs.length > 1;
  const at = (id) => document.getElementById(id);

  // A run has the same shape, dashes and colour everywhere. Each of these alone tells runs apart.
  const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "star"];
  const OUTLINES = { circle: "M8 2a6 6 0 1 0 .01 0z", square: "M2 2h12v12H2z", diamond: "M8 1l7 7-7 7-7-7z",
    "triangle-up": "M8 1l7 13H1z", cross: "M6 1h4v5h5v4h-5v5H6v-5H1V6h5z",
    star: "M8 .8l2.2 4.9 5.3.5-4 3.6 1.2 5.3L8 12.3l-4.700 2.800 1.200-5.300-4-3.600 5.300-.5z" };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const FAMILIES = { "stock, fewer steps": "triangle-down-open", "uniform schedules": "square-open", "other methods": "x-open" };
  // On a touch screen a drag scrolls the page, so it must not zoom the chart.
  const COARSE = matchMedia("(pointer: coarse)").matches;
  const NARROW = "(max-width: 600px)";
  const shapeOf = (r) => SHAPES[r % SHAPES.length];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const labels = Object.fromEntries(data.metrics.map((m) => [m.name, m.label]));
  const lower = Object.fromEntries(data.metrics.map((m) => [m.name, m.lower]));
  // plotly.js takes tags and entities in its texts for markup.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const digits = Object.fromEntries(data.metrics.map((m) => [m.name, m.digits]));
  const value = (v, name) => v == null ? "–" : v.toFixed(name in digits ? digits[name] : Math.abs(v) <= 1 ? 4 : 2);
  const times = (v) => `${v.toFixed(2)}×`;
  // Texts of the tables in the terminal write a factor as 2.1x.
  const inWords = (text, less) => crossed(text).replace("<", `${less} than `).replace(">", "more than ");
  const crossed = (text) => text.replace(/([\d.])x(?=\)?$)/, "$1×");
  const milliseconds = (v) => v >= 10000 ? `${(v / 1000).toFixed(1)} s` : `${v.toFixed(v < 10 ? 2 : 0)} ms`;
  const share = (v) => `${(100 / v).toFixed(1)}%`;
  const count = (v) => v == null ? "not recorded" : typeof v === "number" ? v.toLocaleString("en") : v;
  const nice = (name) => ({ unet_ms: "UNet's calls (ms)", measured_ms: "measured (ms)", table_ms: "by the table (ms)" })[name]
    || name.replace(/_/g, " ");

  const marker = (r) => el("svg", { class: "marker", viewBox: "0 0 16 16", "aria-hidden": "true" },
    el("path", { d: OUTLINES[shapeOf(r)], style: `fill:var(--run-${r % 6})` }));
  const table = (heads, rows, caption) => el("table", {},
    caption ? el("caption", { class: "unseen" }, caption) : null,
    el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows));
  const head = (text, kind) => el("th", { scope: "col", class: kind || null }, text);

  // The points that can be chosen, by run, fastest first: the front, the references and stock.
  const everything = runs.map((run) => [...run.points, ...run.references, run.stock]
    .sort((a, b) => a.latency - b.latency));
  const state = { run: 0, point: runs[0].points.find((p) => p.knee), axis: "speedup", metric: runs[0].quality };
  const run = () => runs[state.run];
  const hasMetric = (p) => p.values[state.metric] != null;

  // ---------------------------------------------------------------- the front
  const horizontal = (p) => state.axis === "speedup" ? p.speedup : 1 / p.speedup;
  const summary = (name, p) => [plain(name), `${times(p.speedup)}, ${share(p.speedup)} of stock's time`,
    ...data.metrics.filter((m) => p.values[m.name] != null).map((m) => `${plain(m.label)} ${value(p.values[m.name], m.name)}`),
    ...(p.plain ? [`as good as ${inWords(p.plain[0], "fewer")} plain steps`
      + (p.plain[1] ? `,<br>${inWords(p.plain[1], "less")} as fast as those` : "")] : [])]
    .join("<br>");
  const naming = (r, p) => `${several ? `${runs[r].name}: ` : ""}${p.label}${p.also ? ` (${p.also})` : ""}`;

  function trace(name, points, texts, keys, options) {
    const shown = points.map((p, i) => i).filter((i) => hasMetric(points[i]));
    return { type: "scatter", mode: "markers", name: plain(name), hoverinfo: "text",
      x: shown.map((i) => horizontal(points[i])), y: shown.map((i) => points[i].values[state.metric]),
      hovertext: shown.map((i) => texts[i]), customdata: shown.map((i) => keys && keys[i]), ...options };
  }

  function traces() {
    const chosen = run(), grey = colour("faint"), result = [];
    if (chosen.candidates.length) {
      result.push(trace("other candidates", chosen.candidates, chosen.candidates.map((p) => summary("Candidate", p)), null,
        { marker: { symbol: "circle", size: 5, color: grey, opacity: .35 } }));
    }
    for (const [family, symbol] of Object.entries(FAMILIES)) {
      const points = chosen.references.filter((p) => p.family === family);
      if (points.length) {
        result.push(trace(family, points, points.map((p) => summary(p.label, p)),
          points.map((p) => [state.run, everything[state.run].indexOf(p)]),
          { marker: { symbol, size: 8, color: colour("muted"), line: { width: 1.5, color: colour("muted") } } }));
      }
    }
    runs.forEach((each, r) => {
      const tone = colour(`run-${r % 6}`);
      result.push(trace(several ? each.name : "the front", each.points, each.points.map((p) => summary(naming(r, p), p)),
        each.points.map((p) => [r, everything[r].indexOf(p)]),
        { mode: "lines+markers", line: { color: tone, width: 1.5, dash: DASHES[r % DASHES.length] },
          marker: { symbol: shapeOf(r), size: 9, color: tone, line: { color: colour("ground"), width: 1 } } }));
    });
    if (!stockIsFar() && hasMetric(chosen.stock)) {
      result.push(trace("stock", [chosen.stock], [summary("Stock", chosen.stock)],
        [[state.run, everything[state.run].indexOf(chosen.stock)]],
        { marker: { symbol: "star", size: 14, color: colour("ink") } }));
    }
    if (hasMetric(state.point) && !(state.point.kind === "stock" && stockIsFar())) {
      result.push({ ...trace("chosen", [state.point], [""], null, {}), hoverinfo: "skip", showlegend: false,
        marker: { symbol: "circle-open", size: 20, color: colour("ink"), line: { width: 2.5, color: colour("ink") } } });
    }
    return result;
  }

  const drawnPoints = () => runs.flatMap((each, r) => [...each.points, ...(r === state.run ? each.references : [])])
    .filter(hasMetric);
  function extent(values) {
    const low = Math.min(...values), high = Math.max(...values);
    return [low, high, high - low || Math.abs(high) || 1];
  }
  // Fidelity of stock to itself is 100 dB. An axis up to there would squeeze the front.
  function stockIsFar() {
    const v = run().stock.values[state.metric], [low, high, spread] = extent(drawnPoints().map((p) => p.values[state.metric]));
    return v != null && (v > high + spread / 2 || v < low - spread / 2);
  }

  function layout() {
    const points = drawnPoints(), narrow = matchMedia(NARROW).matches;
    const stock = hasMetric(run().stock) && !stockIsFar() ? [run().stock.values[state.metric]] : [];
    const [bottom, top, spread] = extent([...points.map((p) => p.values[state.metric]), ...stock]);
    const [left, right, width] = extent([...points.map(horizontal), 1].map(Math.log10));
    const range = [bottom - .06 * spread, top + .1 * spread];
    const ticks = [.01, .02, .03, .05, .07, .1, .2, .3, .5, .7, 1, 2, 3, 5, 7, 10, 20, 30, 50, 100]
      .filter((t) => !narrow || !/[37]/.test(String(t)));
    const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("muted") };
    const axis = { gridcolor: colour("grid"), zeroline: false, linecolor: colour("line"), tickfont: font };
    const stockText = stockIsFar() ? `stock: ${value(run().stock.values[state.metric], state.metric)} ↑` : "stock's time";
    const chosen = state.point, annotations = [{ x: 0, y: 0, yref: "paper", yanchor: "bottom", showarrow: false, font,
      text: stockText, xanchor: state.axis === "speedup" ? "left" : "right", xshift: state.axis === "speedup" ? 6 : -6 }];
    if (hasMetric(chosen) && !(chosen.kind === "stock" && stockIsFar())) {
      annotations.push({ x: Math.log10(horizontal(chosen)), y: chosen.values[state.metric], showarrow: false, yshift: 22,
        font: { ...font, color: colour("ink") }, bgcolor: colour("ground"), opacity: .92, borderpad: 1,
        text: `<b>${plain(chosen.label)}</b> ${times(chosen.speedup)}` });
    }
    return { font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      uirevision: `${state.axis} ${state.metric} ${state.run}`, dragmode: COARSE ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("faint"), activecolor: colour("ink") },
      margin: { l: narrow ? 44 : 58, r: 12, t: 8, b: 48 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: narrow ? -.17 : -.14, yanchor: "top", font, itemsizing: "constant" },
      hoverlabel: { font: { family: font.family, size: 13, color: colour("ink") }, bgcolor: colour("card"),
        bordercolor: colour("line"), align: "left" },
      xaxis: { ...axis, type: "log", tickvals: ticks, range: [left - .05 * width, right + .05 * width],
        ticktext: ticks.map((t) => state.axis === "speedup" ? `${t}×` : `${+(100 * t).toPrecision(3)}%`),
        title: { text: state.axis === "speedup" ? "speed-up over stock" : "share of stock's time", font, standoff: 8 } },
      yaxis: { ...axis, range: lower[state.metric] ? range.reverse() : range, automargin: true,
        title: { text: plain(labels[state.metric]) + (lower[state.metric] ? ", lower is better" : ""), font, standoff: 6 } },
      shapes: [{ type: "line", x0: 1, x1: 1, y0: 0, y1: 1, yref: "paper", layer: "below",
        line: { color: colour("faint"), width: 1, dash: "dot" } }],
      annotations };
  }
  const config = { responsive: true, displaylogo: false, displayModeBar: COARSE ? false : "hover", doubleClick: "reset+autosize",
    modeBarButtons: [["zoomIn2d", "zoomOut2d", "autoScale2d", "toImage"]],
    toImageButtonOptions: { format: "svg", filename: "front" } };

  function drawPlot() {
    const node = at("plot"), first = !node.on;
    Plotly.react(node, traces(), layout(), config);
    if (first) {
      node.on("plotly_click", (event) => {
        const hit = event.points.map((p) => p.customdata).find(Boolean);
        if (hit) choose(hit[0], everything[hit[0]][hit[1]]);
      });
    }
  }

  // ---------------------------------------------------------------- the chosen point
  function drawPoint() {
    const p = state.point, stock = run().stock;
    at("point-heading").textContent = p.label;
    const notes = [several ? run().name : null, p.knee ? "the knee of the front" : null,
      p.also ? `the same as ${p.also}` : null, p.kind === "reference" ? p.family : null,
      p.steps ? `${p.steps} steps` : null, p.scheduler];
    at("point-note").textContent = notes.filter(Boolean).join(" · ");
    const row = (name, text, stockText, id) => el("tr", {}, el("th", { scope: "row" }, name),
      el("td", { class: "number", "data-value": id }, text), el("td", { class: "number" }, stockText));
    const rows = [row("speed-up", times(p.speedup), times(stock.speedup), "speedup"),
      row("time per image", milliseconds(p.latency), milliseconds(stock.latency), "latency"),
      row("share of stock's time", share(p.speedup), share(stock.speedup), "share"),
      ...data.metrics.filter((m) => m.name in p.values).map((m) =>
        row(m.label + (m.lower ? " ↓" : " ↑"), value(p.values[m.name], m.name), value(stock.values[m.name], m.name), m.name)),
      ...(p.kind === "stock" ? [] : [row("plain steps of equal quality", p.plain ? p.plain[0] : "–", "", "plain-steps"),
        row("speed-up over those", p.plain && crossed(p.plain[1]) || "–", "", "over-plain-steps")]),
      ...Object.entries(p.others).map(([name, v]) => row(nice(name), value(v), value(stock.others[name]), name))];
    at("point-values").replaceChildren(
      table([head(""), head(p.kind === "stock" ? "stock" : "this point", "number"), head("stock", "number")], rows, "What was measured"),
      el("p", { class: "hint" }, "↑ higher is better", data.metrics.some((m) => m.lower) ? ", ↓ lower is better" : ""));
    at("live").textContent = `${naming(state.run, p)}: ${times(p.speedup)}, ${labels[run().quality]} ${value(p.values[run().quality], run().quality)}`;
    const index = run().points.indexOf(p);
    for (const [id, to] of [["left", -right()], ["right", right()]]) {
      at(id).setAttribute("aria-label", to < 0 ? "Next faster point" : "Next slower point");
      at(id).disabled = index === (to < 0 ? 0 : run().points.length - 1);
    }
  }

  function drawSchedule() {
    const p = state.point;
    at("schedule-heading").textContent = `Schedule · ${p.label}`;
    at("schedule-words").textContent = scheduleWords(p);
    at("schedule-strip").replaceChildren(scheduleStrip(p));
    at("schedule-key").textContent = scheduleKey(p);
    const vectors = [["depths", p.depths], ["orders", p.orders], ["ratios", p.ratios]].filter(([, v]) => v);
    at("schedule-vectors").replaceChildren(...vectors.flatMap(([name, v]) => [el("dt", {}, name), el("dd", {}, v.join(" "))]));
  }

  function drawImages() {
    const p = state.point, stock = run().stock, shown = p === stock ? [stock] : [p, stock];
    const strips = shown.filter((each) => each.sample);
    at("images-heading").textContent = `Images · ${p.label}`;
    at("images").hidden = ![...run().points, stock].some((each) => each.sample);
    if (!strips.length) return at("image-strips").replaceChildren(el("p", { class: "muted" }, "No images of this point were kept."));
    const prompts = run().prompts.slice(0, Math.max(...strips.map((each) => each.sample.count)));
    at("image-strips").replaceChildren(
      p.sample ? "" : el("p", { class: "muted" }, "No images of this point were kept. These are stock's."),
      el("div", { class: "strips" }, ...strips.map((each) => el("figure", {},
        el("figcaption", {}, each === p ? `${each.label}, ${times(each.speedup)}` : "Stock, from the same noise"),
        el("img", { src: each.sample.uri, width: each.sample.width, height: each.sample.height,
          alt: `${each.label}: ${each.sample.count} images, left to right: ${prompts.join("; ")}` })))),
      prompts.length ? el("p", { class: "hint", style: "margin-top:16px" }, "Prompts, left to right") : "",
      el("ol", { class: "prompts", style: "margin-top:4px" }, ...prompts.map((text) => el("li", {}, text))));
  }

  const copy = (text, button) => copyText(text, button, (said) => { at("live").textContent = said; });

  function drawUse() {
    const p = state.point;
    const block = (name, text) => el("div", { class: "use" }, el("div", { class: "heading" }, el("h3", {}, name),
      el("button", { type: "button", class: "copy", "aria-label": `Copy: ${name}`, onclick: (e) => copy(text, e.currentTarget) }, "Copy")),
      el("pre", { tabindex: "0", "aria-label": name }, el("code", {}, text)));
    at("use-heading").textContent = `Use it · ${p.label}`;
    at("use").replaceChildren(...(p.kind === "stock"
      ? [el("p", { class: "muted" }, "Stock is the unchanged pipeline. dato.remove_patch(pipe) removes a schedule.")]
      : [p.shell ? block("Shell", p.shell) : "", block("Python (pipe: your pipeline)", p.python)]));
  }

  // ---------------------------------------------------------------- all points
  function spark(p) {
    const width = 150, step = width / p.depths.length;
    const d = p.depths.map((depth, i) => depth
      ? `M${(i * step).toFixed(2)} 18h${(step * .8).toFixed(2)}v${(-17 * depth / p.rungs).toFixed(2)}h${(-step * .8).toFixed(2)}z` : "").join("");
    return el("svg", { class: "spark", width, height: 18, viewBox: `0 0 ${width} 18`, "aria-hidden": "true" }, el("path", { d }));
  }

  // The columns and their texts are those of the tables in the terminal (columns.py).
  function drawPoints() {
    const heads = [head("point"), ...run().columns.map((name) => head(name, "number")), head("depth by call")];
    const rows = everything[state.run].map((p) => el("tr", { class: p.kind === "front" ? null : "other" },
      el("th", { scope: "row" }, el("button", { type: "button", onclick: () => choose(state.run, p) },
        el("span", { class: p.kind === "front" ? "keep" : null }, `${p.knee ? "★ " : ""}${p.label}`), p.also ? ` (${p.also})` : null)),
      ...p.cells.map((text) => el("td", { class: "number" }, crossed(text))), el("td", {}, spark(p))));
    at("points-meanings").textContent =
      Object.entries(data.meanings).flatMap(([name, text]) => run().columns.includes(name) ? text : []).join(" ");
    at("points").replaceChildren(table(heads, rows, `All points of ${run().name}, fastest first`));
  }
  function markRow() {
    at("points").querySelectorAll("tbody tr").forEach((row, i) => {
      const chosen = everything[state.run][i] === state.point;
      row.classList.toggle("chosen", chosen);
      const button = row.querySelector("button");
      if (chosen) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
      // Scroll the table only, not the page.
      const box = at("points");
      const hidden = row.offsetTop < box.scrollTop + 40 || row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight;
      if (chosen && hidden) box.scrollTop = row.offsetTop - box.clientHeight / 2;
    });
  }

  // ---------------------------------------------------------------- how the search went
  function drawVolume() {
    const kept = runs.map((each, r) => [each, r]).filter(([each]) => each.volume);
    at("progress").hidden = !kept.length;
    if (!kept.length) return;
    const narrow = matchMedia(NARROW).matches;
    const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("muted") };
    const axis = { gridcolor: colour("grid"), zeroline: false, linecolor: colour("line"), tickfont: font };
    Plotly.react(at("volume"), kept.map(([each, r]) => ({ type: "scatter", mode: "lines", name: plain(each.name),
      x: each.volume.values.map((_, i) => i + 1), y: each.volume.values, hovertemplate: "%{y:.4f} after %{x}<extra></extra>",
      line: { shape: "hv", color: colour(`run-${r % 6}`), width: 2, dash: DASHES[r % DASHES.length] } })),
    { font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: narrow ? 44 : 58, r: 12, t: 8, b: 48 },
      dragmode: false, showlegend: several, legend: { orientation: "h", x: 0, y: -.25, yanchor: "top", font },
      hoverlabel: { font: { family: font.family, size: 13, color: colour("ink") }, bgcolor: colour("card"), bordercolor: colour("line") },
      xaxis: { ...axis, title: { text: "candidates judged", font, standoff: 8 }, rangemode: "tozero" },
      yaxis: { ...axis, title: { text: "hypervolume", font, standoff: 6 }, automargin: true } },
    { responsive: true, displayModeBar: false });
    const ends = kept.map(([each]) => {
      const values = each.volume.values, last = values[values.length - 1];
      return `${several ? `${each.name}: ` : ""}${last.toFixed(4)} after ${values.length} candidates, 99% of it after ${values.findIndex((v) => v >= .99 * last) + 1}`;
    });
    const scales = new Map(kept.map(([each]) => [each.quality,
      `${labels[each.quality]} between the worst and the best seen${several ? " in these runs" : ""} (${value(each.volume.worst, each.quality)} and ${value(each.volume.best, each.quality)})`]));
    const words = `Hypervolume of the front so far: ${ends.join("; ")}. Time counts as a share of stock's time. Quality counts as ${[...scales.values()].join("; ")}. The reference point is stock's time at the worst quality seen.`;
    at("volume").setAttribute("aria-label", `Hypervolume by candidate. ${ends.join("; ")}`);
    at("volume-words").textContent = words;
  }

  // ---------------------------------------------------------------- what does not change with the choice
  function drawOverview() {
    at("title").textContent = several ? `${runs.length} runs compared` : runs[0].name;
    const find = (each, name) => each.settings.flatMap(([, rows]) => rows).filter(([key]) => key === name).map(([, v]) => v)[0];
    const model = [...new Set(runs.map((each) => find(each, "model")))], hardware = [...new Set(runs.map((each) => find(each, "hardware")))];
    at("subtitle").textContent = [...model, runs[0].stock.scheduler, ...hardware].filter(Boolean).join(" · ");
    const at2 = (each, p) => [times(p.speedup), `${labels[each.quality]} ${value(p.values[each.quality], each.quality)}`];
    const ends = (each) => [["fastest", each.points[0]], ["knee", each.points.find((p) => p.knee)], ["best", each.points[each.points.length - 1]]];
    if (!several) {
      const card = (name, big, small) => el("div", {}, el("dt", {}, name), el("dd", {}, String(big), small ? el("small", {}, small) : null));
      const c = runs[0].counts;
      at("overview").replaceChildren(el("dl", { class: "cards" },
        ...ends(runs[0]).map(([name, p]) => card(`front's ${name}`, ...at2(runs[0], p))),
        card("candidates", count(c.candidates), `${c.points} on the front`), card("images", count(c.images)), card("failures", count(c.failures))));
      return;
    }
    at("overview").replaceChildren(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Runs", style: "margin-top:24px" },
      table([head("run"), head("metric"), head("fastest"), head("knee"), head("best"), head("hypervolume", "number"),
        head("candidates", "number"), head("images", "number"), head("failures", "number")],
      runs.map((each, r) => el("tr", {}, el("th", { scope: "row" }, marker(r), each.name), el("td", {}, labels[each.quality]),
        ...ends(each).map(([, p]) => el("td", {}, `${times(p.speedup)} at ${value(p.values[each.quality], each.quality)}`)),
        el("td", { class: "number" }, each.volume ? each.volume.values[each.volume.values.length - 1].toFixed(4) : "–"),
        ...["candidates", "images", "failures"].map((key) => el("td", { class: "number" }, count(each.counts[key] ?? "–"))))), "The runs")));
  }

  function drawControls() {
    const picker = (name, id, options, current, act) => {
      const node = el("select", { id }, ...options.map(([v, text]) => el("option", { value: v }, text)));
      node.value = current;
      node.addEventListener("change", () => act(node.value));
      return el("label", { for: id }, name, node);
    };
    at("controls").replaceChildren(
      several ? picker("Run", "pick-run", runs.map((each, r) => [String(r), each.name]), "0", (v) => choose(+v, runs[+v].points.find((p) => p.knee))) : "",
      picker("Across", "pick-axis", [["speedup", "speed-up"], ["share", "share of stock's time"]], state.axis, (v) => { state.axis = v; drawPlot(); drawPoint(); }),
      data.metrics.length > 1 ? picker("Up", "pick-metric", data.metrics.map((m) => [m.name, m.label]), state.metric, (v) => { state.metric = v; drawPlot(); }) : "");
    at("controls").addEventListener("submit", (event) => event.preventDefault());
    at("plot-hint").textContent = "Click a point, or focus the chart and use the arrow keys (Home and End go to the ends"
      + (several ? ", up and down to the next run" : "") + "). Double-click shows everything."
      + (several ? " Grey points are the references of the chosen run." : "");
  }

  function drawSettings() {
    const groups = [...new Set(runs.flatMap((each) => each.settings.map(([name]) => name)))];
    const rowsOf = (each, group) => new Map((each.settings.find(([name]) => name === group) || [0, []])[1]);
    at("settings").replaceChildren(several ? el("p", { class: "hint", style: "margin-bottom:16px" }, "Rows with ≠ differ between the runs.") : "", el("div", { class: several ? "groups wide" : "groups" }, ...groups.map((group) => {
      const own = runs.map((each) => rowsOf(each, group)), keys = [...new Set(own.flatMap((rows) => [...rows.keys()]))];
      const grid = table([head(""), ...(several ? runs.map((each) => head(each.name)) : [head("value")])],
        keys.map((key) => {
          const differs = new Set(own.map((rows) => rows.get(key))).size > 1;
          return el("tr", { class: differs ? "differs" : null }, el("th", { scope: "row" }, differs ? `${key} ≠` : key),
            ...own.map((rows) => el("td", {}, rows.get(key) ?? "–")));
        }), group);
      if (!several) grid.tHead.classList.add("unseen");
      return el("div", {}, el("h3", {}, group), el("div", several ? { class: "scroll", tabindex: "0", role: "region", "aria-label": group } : {}, grid));
    })), ...runs.filter((each) => each.prompts.length).map((each) => el("details", { style: "margin-top:24px" },
      el("summary", {}, `${several ? `${each.name}: ` : ""}${each.prompts.length} ${each.prompts.length === 1 ? "prompt" : "prompts"}`),
      el("ol", { class: "prompts" }, ...each.prompts.map((text) => el("li", {}, text))))));
  }

  // ---------------------------------------------------------------- choosing
  function choose(r, point) {
    const moved = r !== state.run;
    state.run = r;
    state.point = point;
    if (moved) drawPoints();
    if (moved && at("pick-run")) at("pick-run").value = String(r);
    drawPlot();
    drawPoint();
    drawSchedule();
    drawImages();
    drawUse();
    markRow();
  }
  // One step to the right in the chart is faster if the axis is the speed-up, and slower if it is the time.
  const right = () => state.axis === "speedup" ? -1 : 1;
  // Go along the front, starting at the chosen point, whatever its kind.
  function step(slower) {
    const points = run().points, here = points.indexOf(state.point);
    const next = here >= 0 ? points[here + slower]
      : slower > 0 ? points.find((p) => p.latency > state.point.latency) : points.filter((p) => p.latency < state.point.latency).pop();
    if (next) choose(state.run, next);
  }
  function other(by) {
    const r = (state.run + by + runs.length) % runs.length, goal = Math.log(state.point.speedup);
    const away = (p) => Math.abs(Math.log(p.speedup) - goal);
    choose(r, runs[r].points.reduce((a, b) => away(b) < away(a) ? b : a));
  }
  at("plot").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const points = run().points, end = right() < 0 ? [points.length - 1, 0] : [0, points.length - 1];
    const acts = { ArrowRight: () => step(right()), ArrowLeft: () => step(-right()),
      ArrowUp: () => several ? other(-1) : step(1), ArrowDown: () => several ? other(1) : step(-1),
      Home: () => choose(state.run, points[end[0]]), End: () => choose(state.run, points[end[1]]) };
    if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
  });
  at("left").addEventListener("click", () => step(-right()));
  at("right").addEventListener("click", () => step(right()));

  drawOverview();
  drawControls();
  drawPoints();
  choose(state.run, state.point);
  drawVolume();
  drawSettings();
  for (const query of ["(prefers-color-scheme: dark)", NARROW]) {
    matchMedia(query).addEventListener("change", () => { drawPlot(); drawVolume(); });
  }
})();
