"use strict";
const root = document.documentElement;
const plots = () => [...document.querySelectorAll(".plot")];
const token = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const touch = matchMedia("(pointer: coarse)").matches;

// What depends on the color scheme and on the width; the rest of a figure comes from the page.
function dress(layout) {
  const text = token("--text"), soft = token("--soft"), line = token("--line"), clear = "rgba(0,0,0,0)";
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, automargin: true };
  const dressed = {
    ...layout, autosize: true, paper_bgcolor: clear, plot_bgcolor: clear,
    font: { family: token("--font"), size: 12, color: text },
    hoverlabel: { bgcolor: token("--card"), bordercolor: line, font: { color: text }, align: "left", namelength: -1 },
    modebar: { bgcolor: clear, color: soft, activecolor: text },
    margin: { l: 8, r: 8, t: 34, b: 8, ...layout.margin },
    legend: { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom", ...layout.legend },
    dragmode: touch ? false : "zoom",
  };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key)).concat("xaxis", "yaxis")) {
    const own = layout[name] || {};
    const base = { ...axis, ...(own.zeroline ? { zerolinecolor: soft } : {}) };
    const title = own.title ? { ...own.title, font: { size: 12, color: soft } } : undefined;
    if (own.type !== "category" && name.startsWith("x")) base.tickangle = 0;
    dressed[name] = { ...base, ...own, title, tickfont: { color: soft, ...own.tickfont } };
  }
  dressed.shapes = (layout.shapes || []).map((one) => ({ ...one, line: { color: soft, ...one.line } }));
  dressed.annotations = (layout.annotations || []).map((one) => ({ ...one, font: { color: soft, ...one.font } }));
  return dressed;
}

function describe(plot) {
  for (const [index, drawing] of [...plot.querySelectorAll("svg.main-svg")].entries()) {
    if (index) drawing.setAttribute("aria-hidden", "true");
    else {
      drawing.setAttribute("role", "img");
      drawing.setAttribute("aria-label", document.getElementById(plot.id + "-text").textContent);
    }
  }
  for (const button of plot.querySelectorAll(".modebar-btn")) {
    const what = button.dataset.title || button.getAttribute("aria-label");
    if (what) button.setAttribute("aria-label", what);
  }
}

async function draw(plot) {
  const { data, layout } = JSON.parse(document.getElementById(plot.dataset.chart).textContent);
  const settings = {
    displaylogo: false, displayModeBar: true, responsive: true, showTips: false,
    // named one by one: the usual set has a button that uploads the figure
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };
  await Plotly.react(plot, data, dress(layout), settings);
  describe(plot);
}

async function load() {
  const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (one) => one.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

async function start() {
  try {
    if (plots().length) await load();
    for (const plot of plots()) await draw(plot);
    root.dataset.drawn = "yes";
  } catch (error) {
    root.dataset.drawn = "no";
    for (const plot of plots()) plot.style.height = "auto";
    for (const plot of plots()) plot.textContent ||= "This browser cannot draw the figure; its numbers are in the table.";
    console.error(error);
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", async () => {
  for (const plot of plots()) await draw(plot);
});
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", () => {
    const block = button.parentElement.querySelector("pre");
    getSelection().selectAllChildren(block);
    document.execCommand("copy");
    button.textContent = "Copied";
  });
}
start();
