// Embedding and position codes: the rule, worked out with this sentence's numbers.

const codeOf = (position, dModel) =>
  range(dModel).map((dimension) => {
    const angle = position / 10000 ** ((dimension - (dimension % 2)) / dModel);
    return dimension % 2 ? Math.cos(angle) : Math.sin(angle);
  });

parts.positions = function drawPositions(sentence) {
  const { positions } = sentence.detail;
  if (positions.kind === "none") return [note("positions.none"), drawSum(sentence)];
  const tokens = sentence.src.tokens.slice(0, MOST_DRAWN);
  const own = rowsOf(positions.src);
  const rotary = positions.kind === "rotary";
  const sinusoidal = rotary || positions.kind === "sinusoidal";
  // what turns is a head's query or key; what is added to is an embedding
  const dModel = rotary ? sentence.detail.d_k : sentence.detail.d_model;
  const codes = sinusoidal ? tokens.map((_, position) => codeOf(position, dModel)) : own;
  const title = rotary ? "positions.angles" : "positions.picture";
  const labels = codes.map((_, i) => `${i} \u00b7 ${clip(visible(tokens[i] ?? ""), 9)}`);
  const cell = state.cell;
  cell.position = clamp(cell.position, 0, codes.length - 1);
  cell.pair = clamp(cell.pair, 0, dModel / 2 - 1);

  const most = largestSize(codes.flat());
  const picture = h("div", { class: "codes" });
  const worked = h("div", { class: "worked" });
  const position = dropdown({
    label: tell("positions.position"),
    options: labels,
    selected: cell.position,
    onchange: (index) => { cell.position = index; update(); },
  });
  const pairText = h("output", {});
  const pair = h("input", {
    type: "range", min: 0, max: dModel / 2 - 1, value: cell.pair,
    oninput: () => { cell.pair = Number(pair.value); update(); },
  });
  function update() {
    position.select.value = cell.position;
    pair.value = cell.pair;
    pairText.textContent = tell(
      "positions.pair_value",
      {
        i: String(cell.pair), even: String(2 * cell.pair), odd: String(2 * cell.pair + 1),
      },
    );
    picture.replaceChildren(...codes.map((code, i) =>
      h("div", { class: sinusoidal && i === cell.position ? "code-row here" : "code-row" },
        h("span", { class: "code-label" }, h("bdi", {}, quietMark(labels[i], h, "span"))),
        // sines and cosines stand apart: interleaved, their stripes would hide the waves
        sinusoidal
          ? [0, 1].map(
            (odd) => strip(
              code.filter((_, d) => d % 2 === odd),
              most,
              { mark: i === cell.position ? cell.pair : null },
            ),
          )
          : strip(code, most))));
    if (sinusoidal) [
      ...picture.children,
    ].forEach((row, i) => row.addEventListener("click", (event) => {
      const box = event.target.closest(".strip")?.getBoundingClientRect();
      if (box) cell.pair = clamp(
        Math.floor(((event.clientX - box.left) / box.width) * dModel / 2),
        0,
        dModel / 2 - 1,
      );
      cell.position = i;
      update();
    }));
    worked.replaceChildren(
      ...(sinusoidal ? workOut(cell, dModel, own, codes, rotary) : [note("positions.learned")]),
    );
  }
  update();
  return [
    paragraph(rotary ? "positions.turned" : "positions.added", { size: String(dModel) }),
    subheading(title),
    paragraph(
      sinusoidal ? "positions.picture_text" : "positions.learned_text",
      { count: String(codes.length), size: String(dModel) },
    ),
    sinusoidal && h(
      "div",
      { class: "code-row axes" },
      h("span"),
      h("span", {}, tell("positions.even", { last: String(dModel - 2) })),
      h("span", {}, tell("positions.odd", { last: String(dModel - 1) })),
    ),
    picture,
    tokens.length < sentence.src.tokens.length ? note(
      "common.cut",
      { most: String(MOST_DRAWN) },
    ) : null,
    legend(format(-most, 1), format(most, 1), tell("common.scale"), true),
    details(tell("common.as_table"), () => table({
      caption: tell(title),
      className: "compact",
      head: [tell("positions.dimension"), ...labels],
      rows: range(dModel).map((d) => [String(d), ...codes.map((code) => number(code[d], 3))]),
    })),
    sinusoidal && h(
      "div",
      { class: "controls" },
      position.element,
      h("label", { class: "field" }, h("span", {}, tell("positions.pair")), pair, pairText),
    ),
    worked,
    subheading("positions.distance"),
    paragraph(
      {
        sinusoidal: "positions.distance_text",
        learned: "positions.distance_learned",
        rotary: "positions.distance_rotary",
      }[positions.kind],
    ),
    drawProducts(codes, labels, sinusoidal),
    drawSum(sentence),
  ];
};

function workOut({ position, pair }, dModel, own, codes, rotary) {
  const power = 10000 ** ((2 * pair) / dModel);
  const angle = position / power;
  const exponent = (top, size = mn(String(dModel))) =>
    sup(mn("10000"), mrow(top, mo("/"), size));
  const symbol = (name, index) => [
    ...(rotary ? [] : [sub(mi("PE"), mrow(mi("pos"), mo(","), index)), mo("=")]),
    mi(name), mo("("), frac(mi("pos"), exponent(mrow(mn("2"), mi("i")), mi("d"))), mo(")"),
  ];
  const twice = () => mrow(mn("2"), mi("i"));
  const line = (name, index, result) => formula(
    ...(rotary
      ? []
      : [sub(mi("PE"), mrow(mn(String(position)), mo(","), mn(String(index)))), mo("=")]),
    mi(name), mo("("), frac(mn(String(position)), exponent(mn(String(2 * pair)))), mo(")"), mo("="),
    mi(name), mo("("), frac(mn(String(position)), mv(power, 4)), mo(")"), mo("="),
    mi(name), mo("("), mv(angle, 4), mo(")"), mo("="), mv(result, 4),
  );
  const wavelength = 2 * Math.PI * power;
  const known = position < own.length;
  const compared = known ? note("positions.own", {
    sine: number(own[position][2 * pair], 4),
    cosine: number(own[position][2 * pair + 1], 4),
  }, { class: "note good" }) : null;
  const steps = range(Math.max(codes.length, 2));
  const fine = range(12 * (steps.length - 1) + 1).map((i) => i / 12);
  return [
    subheading("positions.rule"),
    paragraph(rotary ? "positions.rule_rotary" : "positions.rule_text", { size: String(dModel) }),
    formula(...symbol("sin", twice())),
    formula(...symbol("cos", mrow(twice(), mo("+"), mn("1")))),
    paragraph("positions.rule_here", { position: String(position), i: String(pair) }),
    line("sin", 2 * pair, Math.sin(angle)),
    line("cos", 2 * pair + 1, Math.cos(angle)),
    h("p", { class: "data-line" }, say("positions.numbers", {
      power: number(power, 4), angle: number(angle, 4), sine: number(
        Math.sin(angle),
        4,
      ), cosine: number(Math.cos(angle), 4),
    })),
    ...[compared].filter(Boolean),
    ...(rotary
      ? [paragraph("positions.turn", {
        even: String(2 * pair),
        odd: String(2 * pair + 1),
        // as text: each stands in two places, and an element only in one
        sine: factor(Math.sin(angle)),
        cosine: factor(Math.cos(angle)),
      })]
      : []),
    h("div", { class: "pictures" },
      h("figure", {},
        chart({
          label: tell(
            "positions.wave",
            { i: String(pair) },
          ), xs: steps, mark: position, ticks: [-1, 0, 1],
          xLabel: tell("positions.position"), yLabel: "",
          series: [
            { xs: fine, values: fine.map((p) => Math.sin(p / power)), className: "first" },
            { xs: fine, values: fine.map((p) => Math.cos(p / power)), className: "second" },
            { values: steps.map((p) => Math.sin(p / power)), className: "first", dots: "only" },
            { values: steps.map((p) => Math.cos(p / power)), className: "second", dots: "only" },
          ],
        }),
        h(
          "figcaption",
          {},
          say("positions.wave_text", { length: number(wavelength, 1, formatWide(wavelength)) }),
        )),
      h("figure", {},
        chart({
          label: tell("positions.wavelengths"), xs: range(dModel / 2), mark: pair, log: true,
          xLabel: tell("positions.pair"), yLabel: "",
          series: [
            {
              values: range(dModel / 2).map((i) => 2 * Math.PI * 10000 ** ((2 * i) / dModel)),
              className: "first",
            },
          ],
        }),
        h("figcaption", {}, say("positions.wavelengths_text")))),
    details(tell("common.as_table"), () => table({
      caption: tell("positions.wavelengths"),
      className: "compact",
      head: [tell("positions.pair"), tell("positions.wavelength")],
      rows: range(dModel / 2).map(
        (i) => [String(i), wide(2 * Math.PI * 10000 ** ((2 * i) / dModel))],
      ),
    })),
  ];
}

function drawProducts(codes, labels, sinusoidal) {
  const products = codes.map((a) => codes.map((b) => dot(a, b)));
  const most = Math.max(...products.flat());
  const least = Math.min(...products.flat());
  const line = readout();
  const text = (r, c) => format(products[r][c], 2);
  const show = (r, c) => line.replaceChildren(say("positions.product", {
    a: String(r), b: String(c), distance: String(Math.abs(r - c)), product: number(
      products[r][c],
      2,
    ),
  }));
  const { element } = matrix({
    label: tell("positions.distance"),
    rows: labels, columns: labels,
    cell: (r, c) => (
      { share: (products[r][c] - least) / (most - least || 1), text: format(products[r][c], 0) }
    ),
    speak: (r, c) => tell(
      "positions.product",
      { a: String(r), b: String(c), distance: String(Math.abs(r - c)), product: text(r, c) },
    ),
    onmove: show,
    start: [3, 5],
  });
  show(Math.min(3, codes.length - 1), Math.min(5, codes.length - 1));
  const by = sinusoidal ? h("div", { class: "beside" },
    chart({
      label: tell("positions.by_distance"), xs: range(codes.length),
      xLabel: tell("positions.by_distance"), yLabel: "",
      series: [{ values: products[0], className: "first", dots: true }],
    })) : null;
  return h("div", {},
    h(
      "div",
      { class: "pair" },
      h("div", {}, element, line, legend(format(least, 0), format(most, 0), tell("common.scale"))),
      by,
    ),
    asTable(
      { caption: tell("positions.distance"), corner: "", rows: labels, columns: labels, text },
    ));
}

function drawSum(sentence) {
  const { embedding, positions, d_model: dModel } = sentence.detail;
  const scaled = vector(embedding.vector);
  const code = vector(embedding.code);
  const total = vector(embedding.sum);
  const raw = scaled.map((x) => x / embedding.factor);
  const most = largestSize([...scaled, ...code, ...total]);
  const name = token(sentence.src.tokens[embedding.token]);
  const added = ["sinusoidal", "learned"].includes(positions.kind);
  const title = added ? "positions.add" : "positions.scale";
  const lines = [
    ["positions.embedding", raw],
    ["positions.scaled", scaled],
    ...(added ? [["positions.code", code], ["positions.sum", total]] : []),
  ];
  const vars = {
    size: String(dModel),
    factor: short(embedding.factor),
    position: String(embedding.token),
  };
  const first = range(Math.min(6, dModel));
  return h("div", {},
    subheading(title),
    h("p", {}, say(added ? "positions.add_text" : "positions.scale_text", { ...vars, token: name })),
    h("div", {
      class: "sum-strips",
    }, lines.map(([key, values], i) => h("div", { class: "code-row" },
      h(
        "span",
        { class: "code-label" },
        tell(key, vars),
      ), signedBars(values, most, { label: tell(key, vars) })))),
    note("common.bars", { most: format(most, 2) }),
    table({
      caption: tell("positions.first_numbers", { count: String(first.length) }),
      className: "compact sum",
      head: ["", ...first.map((d) => tell("positions.dimension_number", { d: String(d) }))],
      rows: lines.map(
        ([key, values]) => [tell(key, vars), ...first.map((d) => number(values[d], 4))],
      ),
    }),
    details(tell("positions.all_numbers", vars), () => table({
      caption: tell(title),
      className: "compact",
      head: [tell("positions.dimension"), ...lines.map(([key]) => tell(key, vars))],
      rows: range(dModel).map(
        (d) => [String(d), ...lines.map(([, values]) => number(values[d], 4))],
      ),
    })));
}
