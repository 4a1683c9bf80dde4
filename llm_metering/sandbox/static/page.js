/* What makes the pages quicker to use. Without it they work as well, with a button more here and there. */
(function () {
  "use strict";

  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));

  function valueOf(form, name) {
    const field = form.elements[name];
    return field === undefined ? "" : field.value;
  }

  /* Parts of a form that belong to another choice are hidden: data-when="scheme=per_unit,package". */
  function followChoices(form) {
    for (const part of all("[data-when]", form)) {
      const [name, values] = part.dataset.when.split("=");
      part.hidden = !values.split(",").includes(valueOf(form, name));
    }
  }

  /* "First unit" of each tier follows from the one before. */
  function numberTiers(table) {
    let first = "0";
    for (const row of all("tbody tr", table)) {
      row.querySelector("[data-first]").textContent = first;
      const last = Number(row.querySelector("[name=tier_up_to]").value.replace(/,/g, ""));
      first = last ? (last + 1).toLocaleString("en-US") : "…";
    }
  }

  function setUpTiers(table) {
    const add = table.closest("div[data-when]").querySelector("[data-add-tier]");
    add.hidden = false;
    add.addEventListener("click", () => {
      const rows = all("tbody tr", table);
      const row = rows[rows.length - 1].cloneNode(true);
      for (const input of all("input", row)) {
        input.value = "";
        input.setAttribute("aria-label", input.getAttribute("aria-label").replace(/\d+$/, rows.length + 1));
      }
      table.tBodies[0].append(row);
      numberTiers(table);
      row.querySelector("input").focus();
    });
    table.addEventListener("input", () => numberTiers(table));
    numberTiers(table);
  }

  /* The preview pane asks the server, which adds up as the meter would. */
  function setUpTrial(sample) {
    const form = sample.form;
    const target = document.getElementById("tried");
    let latest = 0;
    function mark() {
      for (const part of all("[data-formula]", target)) {
        part.classList.toggle("chosen", part.dataset.formula === valueOf(form, "formula"));
      }
    }
    async function ask() {
      const mine = ++latest;
      const query = new URLSearchParams({
        sample: sample.value,
        event_time_window: valueOf(form, "event_time_window"),
      });
      const answer = await fetch(sample.dataset.try + "?" + query);
      const text = await answer.text();
      if (mine === latest && answer.ok) {
        target.innerHTML = text;
        mark();
      }
    }
    sample.addEventListener("input", ask);
    form.addEventListener("change", ask);
    mark();
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function label(start, window) {
    const at = new Date(start * 1000);
    const day = { timeZone: "UTC", day: "numeric", month: "short" };
    return window === "day"
      ? at.toLocaleDateString("en-GB", day)
      : at.toLocaleString("en-GB", { ...day, hour: "2-digit", minute: "2-digit" });
  }

  function draw(canvas) {
    const data = JSON.parse(canvas.dataset.chart);
    const line = { color: colour("--line") };
    const ticks = { color: colour("--dim"), maxRotation: 0, autoSkipPadding: 16 };
    return new Chart(canvas, {
      type: "bar",
      data: {
        labels: data.starts.map((start) => label(start, data.window)),
        datasets: data.series.map((one, n) => ({
          label: one.name,
          data: one.values,
          backgroundColor: colour("--c" + (n + 1)),
          borderRadius: 4,
          maxBarThickness: 36,
        })),
      },
      options: {
        animation: false,
        maintainAspectRatio: false,
        interaction: { mode: "index", intersect: false },
        plugins: { legend: { position: "bottom", labels: { color: colour("--text"), boxWidth: 12, boxHeight: 12 } } },
        scales: {
          x: { stacked: true, grid: { display: false }, ticks },
          y: { stacked: true, beginAtZero: true, grid: line, border: { display: false }, ticks },
        },
      },
    });
  }

  function setUpCharts() {
    const canvases = all("canvas[data-chart]");
    if (!canvases.length || typeof Chart === "undefined") return;
    let charts = canvases.map(draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      charts.forEach((chart) => chart.destroy());
      charts = canvases.map(draw);
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const select of all("select[data-submit]")) {
      select.addEventListener("change", () => select.form.requestSubmit());
      const button = select.form.querySelector("button");
      if (button && !button.closest("noscript")) button.hidden = true;
    }
    for (const form of all("form")) {
      form.addEventListener("change", () => followChoices(form));
      followChoices(form);
    }
    all("table[data-tiers]").forEach(setUpTiers);
    all("textarea[data-try]").forEach(setUpTrial);
    for (const host of all("[data-host]")) host.textContent = location.host;
    const here = document.querySelector("nav [aria-current]");
    if (here) here.scrollIntoView({ block: "nearest", inline: "center" });
    setUpCharts();
  });
})();
