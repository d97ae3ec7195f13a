// What a run's page and the demo share: make elements, copy text, draw a schedule. Data is shown as text only.
const datoParts = (() => {
  "use strict";

  function el(tag, attributes, ...children) {
    const node = tag === "svg" || tag === "path" ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [key, v] of Object.entries(attributes || {})) {
      if (key === "onclick") node.addEventListener("click", v);
      else if (v != null) node.setAttribute(key, v);
    }
    node.append(...children.filter((child) => child != null));
    return node;
  }

  // Copy text, and say on the button, and by `tell`, whether that worked.
  async function copyText(text, button, tell) {
    let done = true;
    try { await navigator.clipboard.writeText(text); } catch {
      // Some browsers deny the clipboard to a page from a file. There the old command works.
      const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
      area.value = text;
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = done ? "Copied" : "Select and copy it";
    tell(button.textContent);
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  }

  // A schedule `p` is what `schedule_data` in page_data.py gives.
  function scheduleWords(p) {
    const calls = p.depths.length, counts = new Map();
    p.depths.forEach((d) => counts.set(d, (counts.get(d) || 0) + 1));
    const kinds = [...counts].sort((a, b) => b[0] - a[0]).map(([d, n]) =>
      d === p.rungs ? `${n} run the whole UNet` : d === 0 ? `${n} run nothing` : `${n} run to depth ${d}`);
    return `${calls} ${calls === 1 ? "call" : "calls"}: ${kinds.join(", ")}.`
      + (p.order ? ` Cached values are forecast with order ${p.order}.`
        : counts.size > 1 ? " Cached values are used as they are." : "")
      + (p.ratios ? ` Attention leaves out ${(100 * p.ratio).toFixed(0)}% of the tokens on average.` : "");
  }

  const scheduleStrip = (p) => el("div", { class: "calls", role: "img", "aria-label": scheduleWords(p) },
    ...p.depths.map((d, i) => {
      const part = d < p.rungs, ratio = p.ratios && d ? p.ratios[i] : 0, order = p.orders && part ? p.orders[i] : 0;
      const title = `call ${i + 1}: ${d === p.rungs ? "whole UNet" : d ? `depth ${d}` : "nothing runs"}`
        + (order ? `, order ${order}` : "") + (ratio ? `, ratio ${ratio}` : "");
      return el("div", { class: part ? "call" : "call whole", title },
        el("div", { class: "box" }, el("div", { class: "fill", style: `height:${100 * d / p.rungs}%` },
          ratio ? el("span", { class: "left-out", style: `width:${100 * ratio}%` }) : null)),
        el("b", {}, d ? String(d) : "·"),
        p.orders ? el("i", {}, part ? `o${p.orders[i]}` : " ") : null,
        p.ratios ? el("i", {}, d ? String(ratio).replace(/^0\./, ".") : " ") : null);
    }));

  const scheduleKey = (p) => `One column a call, in order. The height and the number show the depth. ${p.rungs} is the whole UNet. · runs nothing and uses the previous prediction again.`
    + (p.orders ? " o shows the order of the forecast." : "") + (p.ratios ? " The hatching and the last line show the share of tokens left out." : "");

  return { el, copyText, scheduleWords, scheduleStrip, scheduleKey };
})();
