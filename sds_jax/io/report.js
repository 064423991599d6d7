// Draws a small line chart for each metric, with a cursor for reading values; a click on the turntable pauses the video.
"use strict";
(() => {
  const {curves} = JSON.parse(document.getElementById("report-data").textContent);
  const W = 320, H = 132, LEFT = 44, RIGHT = 6, TOP = 8, BOTTOM = 20;
  const host = document.getElementById("curves");
  if (host) curves.forEach(curve => host.append(chart(curve)));

  document.querySelectorAll("video").forEach(video => {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) video.pause();
    video.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
  });

  function svg(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function format(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
    return String(Number(value.toPrecision(size < 1 ? 2 : 3)));
  }

  function chart({name, steps, values}) {
    const known = values.filter(v => v !== null);
    let low = Math.min(...known), high = Math.max(...known);
    const log = low > 0 && high / low > 50;  // a linear axis would hide all but the largest of widely spread values
    if (high - low < 1e-9 * Math.abs(high) || high === low) { low -= 0.5 * Math.abs(low) || 0.5; high += 0.5 * Math.abs(high) || 0.5; }
    const up = v => (log ? Math.log10(v) : v), [first, last] = [steps[0], steps[steps.length - 1]];
    const x = s => LEFT + (W - LEFT - RIGHT) * (last > first ? (s - first) / (last - first) : 0.5);
    const y = v => H - BOTTOM - (H - TOP - BOTTOM) * (up(v) - up(low)) / (up(high) - up(low));
    const box = document.createElement("div"), title = document.createElement("h3");
    const label = document.createElement("span"), readout = document.createElement("output");
    box.className = "curve";
    label.textContent = name + (log ? " (log scale)" : "");
    title.append(label, readout);
    const graph = svg("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${name} by step`});
    const middle = log ? Math.sqrt(low * high) : 0.5 * (low + high);
    for (const v of [low, middle, high]) {
      graph.append(svg("line", {class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v)}));
      graph.append(svg("text", {x: LEFT - 6, y: y(v) + 4, "text-anchor": "end"}, format(v)));
    }
    graph.append(svg("text", {x: LEFT, y: H - 4}, first), svg("text", {x: W - RIGHT, y: H - 4, "text-anchor": "end"}, `step ${last}`));
    let path = "", pen = false;  // gaps for values that are not finite
    values.forEach((v, i) => {
      if (v !== null) path += `${pen ? "L" : "M"}${x(steps[i]).toFixed(1)} ${y(v).toFixed(1)}${pen ? "" : "h0"}`;
      pen = v !== null;
    });
    const cursor = svg("line", {class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden"});
    const dot = svg("circle", {class: "dot", r: 4, visibility: "hidden"});
    graph.append(svg("path", {class: "line", d: path}), cursor, dot);
    const rest = () => {
      readout.textContent = format(known[known.length - 1]);
      [cursor, dot].forEach(e => e.setAttribute("visibility", "hidden"));
    };
    graph.addEventListener("pointermove", e => {
      const area = graph.getBoundingClientRect(), at = (e.clientX - area.left) / area.width * W;
      let best = -1;
      steps.forEach((s, i) => { if (values[i] !== null && (best < 0 || Math.abs(x(s) - at) < Math.abs(x(steps[best]) - at))) best = i; });
      cursor.setAttribute("x1", x(steps[best])); cursor.setAttribute("x2", x(steps[best]));
      dot.setAttribute("cx", x(steps[best])); dot.setAttribute("cy", y(values[best]));
      [cursor, dot].forEach(e => e.setAttribute("visibility", "visible"));
      readout.textContent = `${format(values[best])} at step ${steps[best]}`;
    });
    graph.addEventListener("pointerleave", rest);
    rest();
    box.append(title, graph);
    return box;
  }
})();
