// Pictures of numbers: matrices to read (SVG, walkable by keyboard), thumbnails, token lines.

// One hue; its opacity rises with the number. The root makes small weights visible.
const shadeOf = (share) => clamp(share, 0, 1) ** 0.7;

// Where light text begins to read better than dark.
const DARK = 0.62;

// Rows and columns of a drawing; longer sentences are cut there, the table has them all.
const MOST_DRAWN = 80;

/** Side of a cell in pixels: large enough to read, small enough to see the whole. */
const cellSize = (count) => (count <= 10 ? 38 : count <= 18 ? 28 : count <= 34 ? 20 : 13);

/**
 * A matrix as a grid: hover or arrow keys move a cursor; each cell speaks its row, column, number.
 *
 * rows, columns: labels. cell(r, c): {share 0..1, text, masked}. speak(r, c): what a cell says.
 * onmove(r, c): the cursor came to a cell. onpick(r, c): a cell was clicked or entered.
 */
function matrix(
  { label, rows: allRows, columns: allColumns, cell, speak, onmove, onpick, start = [0, 0] }
) {
  const [rows, columns] = [allRows.slice(0, MOST_DRAWN), allColumns.slice(0, MOST_DRAWN)];
  const size = cellSize(Math.max(rows.length, columns.length));
  const left = 8 + 7.4 * Math.max(...rows.map((text) => measure(clip(text, 12))));
  const top = 14 + 5.6 * Math.max(...columns.map((text) => measure(clip(text, 12))));
  const [width, height] = [left + columns.length * size + 44, top + rows.length * size + 2];
  const x = (c) => left + c * size;
  const y = (r) => top + r * size;

  const rowLabels = rows.map((text, r) =>
    svg(
      "text",
      { x: left - 6, y: y(r) + size / 2, class: "row-label" },
      quietMark(clip(text, 12), svg, "tspan"),
    ),
  );
  const columnLabels = columns.map((text, c) => {
    const [tx, ty] = [x(c) + size / 2 + 2, top - 6];
    return svg(
      "text",
      { x: tx, y: ty, transform: `rotate(-50 ${tx} ${ty})`, class: "column-label" },
      quietMark(clip(text, 12), svg, "tspan"),
    );
  });
  const cells = rows.map((_, r) =>
    columns.map((_, c) => {
      const { share, masked } = cell(r, c);
      return svg("rect", {
        x: x(c) + 0.5,
        y: y(r) + 0.5,
        width: size - 1,
        height: size - 1,
        class: masked ? "cell masked" : "cell",
        "fill-opacity": masked ? null : shadeOf(share).toFixed(3),
        role: "gridcell",
        tabindex: -1,
        "aria-label": speak(r, c),
        dataset: { row: r, column: c },
      });
    }),
  );
  const figures = size < 38 ? [] : cells.flatMap((line, r) => line.map((_, c) => {
    const { share, text, masked } = cell(r, c);
    const dark = shadeOf(share) > DARK ? " on-dark" : "";
    return masked ? null : svg(
      "text",
      { x: x(c) + size / 2, y: y(r) + size / 2, class: `figure${dark}`, "aria-hidden": "true" },
      text,
    );
  }));
  const rowBand = svg(
    "rect",
    { class: "band", x: left, width: columns.length * size, height: size },
  );
  const columnBand = svg(
    "rect",
    { class: "band", y: top, width: size, height: rows.length * size },
  );
  const element = svg(
    "svg",
    {
      class: "matrix",
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "grid",
      "aria-label": label,
    },
    svg("g", { "aria-hidden": "true", role: "presentation" }, rowLabels, columnLabels),
    svg(
      "rect",
      {
        class: "paper",
        x: left,
        y: top,
        width: columns.length * size,
        height: rows.length * size,
        role: "presentation",
      },
    ),
    cells.map((line) => svg("g", { role: "row" }, line)),
    svg(
      "g",
      { class: "overlay", "aria-hidden": "true", role: "presentation" },
      figures,
      rowBand,
      columnBand,
    ),
  );

  let [row, column] = [clamp(start[0], 0, rows.length - 1), clamp(start[1], 0, columns.length - 1)];
  function moveTo(r, c, { focus = false, quiet = false } = {}) {
    cells[row][column].setAttribute("tabindex", -1);
    rowLabels[row].classList.remove("here");
    columnLabels[column].classList.remove("here");
    [row, column] = [clamp(r, 0, rows.length - 1), clamp(c, 0, columns.length - 1)];
    cells[row][column].setAttribute("tabindex", 0);
    rowLabels[row].classList.add("here");
    columnLabels[column].classList.add("here");
    rowBand.setAttribute("y", y(row));
    columnBand.setAttribute("x", x(column));
    if (focus) cells[row][column].focus();
    if (!quiet) onmove?.(row, column);
  }
  const under = (event) => {
    const { row, column } = event.target.dataset ?? {};
    return row === undefined ? null : [Number(row), Number(column)];
  };
  element.addEventListener("pointermove", (event) => under(event) && moveTo(...under(event)));
  element.addEventListener("focusin", (event) => under(event) && moveTo(...under(event)));
  element.addEventListener("click", (event) => {
    if (!under(event)) return;
    moveTo(...under(event), { focus: true });
    onpick?.(row, column);
  });
  element.addEventListener("keydown", (event) => {
    const all = event.ctrlKey || event.metaKey;
    const step = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [all ? 0 : row, 0],
      End: [all ? rows.length - 1 : row, columns.length - 1],
      PageUp: [0, column],
      PageDown: [rows.length - 1, column],
    }[event.key];
    if (step) {
      event.preventDefault();
      moveTo(...step, { focus: true });
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      onpick?.(row, column);
    }
  });
  moveTo(row, column, { quiet: true });
  const cut = Math.max(allRows.length, allColumns.length) > MOST_DRAWN;
  return {
    element: h(
      "div",
      {},
      h("div", { class: "scroll picture" }, element),
      cut ? note("common.cut", { most: String(MOST_DRAWN) }) : null,
    ),
    moveTo,
  };
}

const measure = (text) => [...text].reduce((width, c) => width + (c > "\u2e7f" ? 1.7 : 1), 0);

/** What stands under a matrix: the numbers of the cursor's place. */
const readout = () => h("p", { class: "readout", "aria-hidden": "true" });

/** A matrix drawn small; the ink is the element's own text colour, so themes only redraw it. */
function thumbnail(values) {
  const [rowCount, columnCount] = [values.length, values[0].length];
  const canvas = h(
    "canvas",
    { width: columnCount, height: rowCount, class: "thumbnail", "aria-hidden": "true" },
  );
  const context = canvas.getContext("2d");
  const image = context.createImageData(columnCount, rowCount);
  canvas.redraw = () => {
    const [red, green, blue] = inkOf(canvas);
    values.forEach((line, r) => line.forEach((share, c) => {
      image.data.set([red, green, blue, 255 * shadeOf(share)], 4 * (r * columnCount + c));
    }));
    context.putImageData(image, 0, 0);
  };
  requestAnimationFrame(canvas.redraw);
  return canvas;
}

/** The heat colour of the theme in use, as three bytes. */
function inkOf(element) {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  probe.fillStyle = getComputedStyle(element).color;
  probe.fillRect(0, 0, 1, 1);
  return probe.getImageData(0, 0, 1, 1).data;
}

const redrawCanvases = () =>
  document.querySelectorAll("canvas.thumbnail").forEach((canvas) => canvas.redraw());

/** The scale of the shades. */
function legend(low, high, label, signed = false) {
  const steps = range(24);
  const share = (step) => (signed ? (2 * step) / 23 - 1 : step / 23);
  return h(
    "div",
    { class: "legend" },
    h("span", {}, label),
    h("span", {}, low),
    svg("svg", { viewBox: "0 0 24 1", preserveAspectRatio: "none", "aria-hidden": "true" },
      steps.map(
        (step) => svg(
          "rect",
          {
            class: shadeClass(share(step)),
            x: step,
            width: 1.02,
            height: 1,
            "fill-opacity": shadeOf(Math.abs(share(step))).toFixed(3),
          },
        ),
      )),
    h("span", {}, high),
  );
}

/** Of either sign: a second hue below zero, and zero is the paper. */
const shadeClass = (share) => (share < 0 ? "cell below" : "cell");

/** Numbers of either sign as one strip of shades, from -most to most. */
function strip(values, most, { className = "", mark = null, label = null } = {}) {
  const cells = values.map((number, i) =>
    svg(
      "rect",
      {
        class: shadeClass(number),
        x: i,
        width: 1.02,
        height: 1,
        "fill-opacity": shadeOf(Math.abs(number) / most).toFixed(3),
      },
    ),
  );
  return svg(
    "svg",
    {
      class: `strip ${className}`,
      viewBox: `0 0 ${values.length} 1`,
      preserveAspectRatio: "none",
      role: label ? "img" : null,
      "aria-label": label,
      "aria-hidden": label ? null : "true",
    },
    svg("rect", { class: "paper", width: values.length, height: 1 }),
    cells,
    mark === null ? null : svg("rect", { class: "mark", x: mark, width: 1, height: 1 }),
  );
}

/** Numbers of either sign as bars that rise and fall from a line, each as high as most at most. */
function signedBars(values, most, { mark = null, label = null } = {}) {
  const count = values.length;
  const path = values.map((x, i) => `M${i + 0.1} 1h0.8v${(-x / most).toFixed(4)}h-0.8z`).join("");
  return svg(
    "svg",
    {
      class: "signed",
      viewBox: `0 0 ${count} 2`,
      preserveAspectRatio: "none",
      role: label ? "img" : null,
      "aria-label": label,
      "aria-hidden": label ? null : "true",
    },
    svg("rect", { class: "paper", width: count, height: 2 }),
    mark === null ? null : svg("rect", { class: "marked", x: mark, width: 1, height: 2 }),
    svg("path", { class: "bars-path", d: path }),
    svg("line", { class: "zero", x1: 0, x2: count, y1: 1, y2: 1 }),
  );
}

/** Two columns of tokens and a line for each weight: who looks at whom. */
function tokenLines({ rows: allRows, columns: allColumns, weights, label, onhover }) {
  const [rows, columns] = [allRows.slice(0, MOST_DRAWN), allColumns.slice(0, MOST_DRAWN)];
  const step = 22;
  const side = 112;
  const gap = 130;
  const height = Math.max(rows.length, columns.length) * step + 8;
  const offset = (count) => (height - count * step) / 2 + step / 2;
  const y = (index, count) => offset(count) + index * step;
  const middle = side + gap / 2;
  const links = rows.map((_, r) =>
    svg("g", { class: "links" }, columns.map((_, c) => {
      const share = weights[r][c];
      if (share < 0.02) return null;
      const [from, to] = [y(r, rows.length), y(c, columns.length)];
      return svg("path", {
        d: `M${side} ${from} C${middle} ${from} ${middle} ${to} ${side + gap} ${to}`,
        "stroke-opacity": shadeOf(share).toFixed(3),
        "stroke-width": (1.2 + 5 * share).toFixed(2),
      });
    })),
  );
  const lefts = rows.map((text, r) => svg("g", { class: "line-token", dataset: { row: r } },
    svg("rect", { x: 0, y: y(r, rows.length) - step / 2, width: side - 2, height: step }),
    svg(
      "text",
      { x: side - 7, y: y(r, rows.length), class: "row-label" },
      quietMark(clip(text, 13), svg, "tspan"),
    )));
  const rights = columns.map((text, c) => svg("g", { class: "line-token" },
    svg(
      "rect",
      {
        class: "heat",
        x: side + gap + 2,
        y: y(c, columns.length) - step / 2 + 1,
        width: side - 2,
        height: step - 2,
        rx: 3,
        "fill-opacity": 0,
      },
    ),
    svg(
      "text",
      { x: side + gap + 8, y: y(c, columns.length), class: "line-label" },
      quietMark(clip(text, 13), svg, "tspan"),
    )));
  const width = 2 * side + gap;
  const element = svg(
    "svg",
    {
      class: "token-lines",
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
      role: "img",
      "aria-label": label,
    },
    links, lefts, rights,
  );
  element.addEventListener("pointermove", (event) => {
    const { row } = event.target.parentNode?.dataset ?? {};
    if (row !== undefined) onhover(Number(row));
  });
  function highlight(row) {
    if (row >= rows.length) return;
    links.forEach((group, r) => group.classList.toggle("dim", r !== row));
    lefts.forEach((group, r) => group.classList.toggle("here", r === row));
    rights.forEach((group, c) => {
      const share = shadeOf(weights[row][c]);
      group.firstChild.setAttribute("fill-opacity", share.toFixed(3));
      group.lastChild.classList.toggle("on-dark", share > DARK);
    });
  }
  return { element, highlight };
}

/** The same numbers as a table, made when it is opened. */
const asTable = ({ caption, corner, rows, columns, text }) =>
  details(tell("common.as_table"), () =>
    table({
      caption,
      className: "compact",
      head: [corner, ...columns.map((c) => token(c, 16))],
      rows: rows.map((row, r) => [token(row, 16), ...columns.map((_, c) => text(r, c))]),
    }),
  );

/** A small chart of lines; series: {xs, values, className, dots}. */
function chart(
  {
    label,
    xs,
    series,
    xLabel,
    yLabel,
    mark = null,
    width = 420,
    height = 190,
    log = false,
    ticks = null,
  }
) {
  const [left, bottom, top] = [48, 34, 12];
  const scaleY = (value) => (log ? Math.log10(value) : value);
  const all = series.flatMap((line) => line.values.map(scaleY));
  const [low, high] = ticks ? [ticks[0], ticks.at(-1)] : [Math.min(...all), Math.max(...all)];
  const [first, last] = [xs[0], xs.at(-1)];
  const x = (value) => left + ((value - first) / (last - first || 1)) * (width - left - 14);
  const y = (value) => height - bottom - (
    (scaleY(value) - low) / (high - low || 1)
  ) * (height - bottom - top);
  // a logarithmic scale has its two ends, and the powers of ten that do not touch them
  const apart = (power) => Math.min(power - low, high - power) > (high - low) / 12;
  const powers = range(Math.floor(high) - Math.ceil(low) + 1).map((i) => Math.ceil(low) + i);
  const roomFor = (value) =>
    value !== null && Math.min(value - first, last - value) > (last - first) / 12;
  const marks = log
    ? [low, ...powers.filter(apart), high].map((power) => 10 ** power)
    : (ticks ?? [low, (low + high) / 2, high]);
  return svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    marks.map((tick) => [
      svg("line", { class: "grid", x1: left, x2: width - 14, y1: y(tick), y2: y(tick) }),
      svg(
        "text",
        { class: "tick end", x: left - 6, y: y(tick) },
        short(tick).length > 6 ? formatWide(tick) : short(tick),
      ),
    ]),
    [first, ...(roomFor(mark) ? [mark] : []), last].map(
      (tick) => svg(
        "text",
        { class: "tick middle", x: x(tick), y: height - bottom + 14 },
        String(tick),
      ),
    ),
    svg("text", { class: "tick middle", x: (left + width) / 2, y: height - 5 }, xLabel),
    svg("text", { class: "tick", x: 4, y: top - 3 }, yLabel),
    mark === null ? null : svg(
      "line",
      { class: "mark-line", x1: x(mark), x2: x(mark), y1: top, y2: height - bottom },
    ),
    series.map(({ xs: places = xs, values, className, dots }) => [
      dots === "only" ? null : svg(
        "polyline",
        {
          class: `curve ${className}`,
          points: values.map((value, i) => `${x(places[i])},${y(value)}`).join(" "),
        },
      ),
      dots ? values.map(
        (value, i) => svg(
          "circle",
          { class: `dot ${className}`, cx: x(places[i]), cy: y(value), r: 3 },
        ),
      ) : null,
    ]),
  );
}
