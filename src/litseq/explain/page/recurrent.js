// The recurrent models: hidden states, the score of each source word, the one context vector.

/** Rows of a picture in its own range of numbers. */
const pictureRows = (picture) => {
  const [low, high] = picture.range;
  return rowsOf(picture).map((row) => row.map((share) => low + share * (high - low)));
};

function statePicture(title, text, picture, tokens, size) {
  const rows = pictureRows(picture);
  const most = largestSize(picture.range);
  return [
    subheading(title),
    paragraph(text, { count: String(rows[0].length), size: String(size) }),
    h("div", { class: "codes" }, rows.map((values, i) => h("div", { class: "code-row" },
      h("span", { class: "code-label" }, token(tokens[i], 12)), strip(values, most)))),
    legend(format(-most, 2), format(most, 2), tell("common.scale"), true),
    details(tell("common.as_table"), () => table({
      caption: tell(title), className: "compact",
      head: [tell("tokens.token"), ...range(rows[0].length).map(String)],
      rows: rows.map((values, i) => [token(tokens[i], 16), ...values.map((x) => number(x, 2))]),
    })),
  ];
}

parts.states = function drawStates(sentence) {
  const { detail, src, tgt_in: read } = sentence;
  const { rnn_type: type = "rnn", bidirectional: both, hidden_size: size } = record.model.options;
  const hidden = (arrow, ...time) =>
    sub(arrow ? math("mover", mi("h"), mo(arrow)) : mi("h"), mrow(mi("t"), ...time));
  const step = (arrow, sign) => formula(
    hidden(arrow),
    mo("="),
    mi(type.toUpperCase()),
    mo("("),
    sub(mi("x"), mi("t")),
    mo(","),
    hidden(arrow, mo(sign), mn("1")),
    mo(")"),
  );
  const [forwards, backwards] = ["\u2192", "\u2190"];
  const joined = () => formula(
    hidden(), mo("="), mo("["), hidden(forwards), mo(";"), hidden(backwards), mo("]"),
  );
  return [
    both ? [step(forwards, "\u2212"), step(backwards, "+"), joined()] : step(null, "\u2212"),
    statePicture(
      "states.encoder",
      both ? "states.encoder_both" : "states.encoder_text",
      detail.encoder_states,
      src.tokens,
      size * (both ? 2 : 1),
    ),
    detail.reverse_source ? note("states.reversed") : null,
    statePicture(
      "states.decoder", "states.decoder_text", detail.decoder_states, read.tokens, size,
    ),
    paragraph(
      detail.context_at_every_step === false ? "states.predicts" : "states.predicts_context",
    ),
  ];
};

const SCORE = {
  additive: () => [
    sup(mi("v"), mi("T")),
    mi("tanh"),
    mo("("),
    mi("W"),
    mi("s"),
    mo("+"),
    mi("U"),
    mi("h"),
    mo(")"),
  ],
  concat: () => [
    sup(mi("v"), mi("T")),
    mi("tanh"),
    mo("("),
    mi("W"),
    mo("["),
    mi("s"),
    mo(";"),
    mi("h"),
    mo("]"),
    mo(")"),
  ],
  dot: () => [mi("s"), mo("\u00b7"), mi("h")],
  general: () => [mi("s"), mo("\u00b7"), mi("W"), mi("h")],
};

parts.scores = function drawScores(sentence) {
  const { detail, src, tgt } = sentence;
  // both kinds of learned score work at the decoder's size
  const about = paragraph(`scores.${detail.score}`, { dk: String(detail.hidden_size) });
  if (!detail.step || !detail.queries || !detail.contexts || !detail.scores) {
    return [about, note("scores.too_long")];
  }
  const chosen = state.scores;
  chosen.step ??= detail.step.index;
  chosen.step = clamp(chosen.step, 0, tgt.tokens.length - 1);
  chosen.key ??= argmax(vector(detail.weights, chosen.step));
  const steps = h("ol", { class: "steps" });
  const update = () => {
    const focused = document.activeElement?.dataset?.focus;
    chosen.key = clamp(chosen.key, 0, src.tokens.length - 1);
    steps.replaceChildren(
      h("li", {}, scoreStep(sentence, chosen, update)),
      h("li", {}, weightStep(sentence, chosen, update)),
      h("li", {}, contextStep(sentence, chosen, update)),
    );
    if (focused) steps.querySelector(`[data-focus="${focused}"]`)?.focus();
  };
  const words = choice({
    legend: tell("head.word_cross"), name: "step-of-scores", style: "chips", selected: chosen.step,
    options: tgt.tokens.map((text) => token(text, 16)),
    onchange: (step) => {
      chosen.step = step;
      chosen.key = argmax(vector(detail.weights, step));
      update();
    },
  });
  update();
  return [
    formula(
      mi(tell("scores.name")),
      mo("("),
      mi("s"),
      mo(","),
      mi("h"),
      mo(")"),
      mo("="),
      ...SCORE[detail.score](),
    ),
    about,
    words.element,
    steps,
  ];
};

function scoreStep(sentence, chosen, update) {
  const { detail, src, tgt } = sentence;
  const parts = [
    subheading("scores.score"),
    paragraph("scores.score_text", { count: String(src.tokens.length) }),
  ];
  const { step } = detail;
  const [query, key] = [vector(detail.queries, chosen.step), vector(step.keys, chosen.key)];
  const energy = step.energy ? vector(step.energy) : null;
  const inner = query.map((x, d) => (energy ? Math.tanh(x + key[d]) : x));
  const terms = inner.map((x, d) => x * (energy ?? key)[d]);
  const shown = range(Math.min(3, terms.length));
  const term = (d) => energy
    ? h(
      "span",
      { class: "term" },
      number(energy[d], 3, factor(energy[d])),
      " \u00d7 tanh(",
      number(query[d], 3),
      " + ",
      number(key[d], 3, factor(key[d])),
      ")",
    )
    : h(
      "span",
      { class: "term" },
      number(query[d], 3, factor(query[d])),
      " \u00d7 ",
      number(key[d], 3, factor(key[d])),
    );
  let running = 0;
  const own = vector(detail.scores, chosen.step)[chosen.key];
  return [
    ...parts,
    h(
      "p",
      { class: "written" },
      `${tell("scores.name")}(`,
      token(tgt.tokens[chosen.step], 16),
      ", ",
      token(src.tokens[chosen.key], 16),
      ") = ",
      shown.flatMap((d) => [d ? " + " : "", term(d)]),
      shown.length < terms.length ? " + \u2026 = " : " = ",
      h("strong", {}, number(sum(terms), 4)),
    ),
    note(
      "scores.own",
      { own: number(own, 4), difference: wide(Math.abs(own - sum(terms))) },
      { class: Math.abs(own - sum(terms)) < 1e-3 ? "note good" : "note bad" },
    ),
    details(tell("head.terms", { dk: String(terms.length) }), () => table({
      caption: tell("scores.score"), className: "compact terms",
      head: [
        tell("positions.dimension"),
        ...(energy ? ["v", "W s", "U h", "tanh"] : ["s", "h"]),
        tell("scores.term"),
        tell("head.so_far"),
      ],
      rows: terms.map(
        (x, d) => [
          String(d),
          ...(
            energy ? [energy[d], query[d], key[d], inner[d]] : [query[d], key[d]]
          ).map((y) => number(y, 4)),
          number(x, 4),
          number((running += x), 4),
        ],
      ),
    })),
  ];
}

function weightStep({ detail, src }, chosen, update) {
  const scores = vector(detail.scores, chosen.step);
  const own = vector(detail.weights, chosen.step);
  const result = softmax(scores);
  const difference = largestDifference(result.weights, own);
  return [
    subheading("scores.softmax"),
    paragraph("scores.softmax_text"),
    result.shift ? note("head.shift", { shift: number(result.shift, 2) }) : null,
    table({
      caption: tell("scores.table"), className: "scores",
      head: [tell("tokens.token"), tell("scores.column"), "exp", tell("head.weight"), ""],
      rows: src.tokens.map((text, key) => h("tr", {
        class: key === chosen.key ? "current" : null,
        dataset: { key },
      },
        h(
          "th",
          { scope: "row" },
          h(
            "button",
            {
              type: "button",
              class: "link",
              "aria-pressed": String(key === chosen.key),
              dataset: { focus: `score-${key}` },
              "aria-label": tell("head.pick", { token: spoken(text) }),
              onclick: () => { chosen.key = key; update(); },
            },
            token(text, 16),
          ),
        ),
        h("td", {}, number(scores[key], 3)), h("td", {}, wide(result.exps[key])), h(
          "td",
          { class: "weight" },
          number(result.weights[key], 4),
        ),
        h("td", { class: "bar-cell" }, bar(result.weights[key])))),
      foot: [
        h(
          "tr",
          {},
          h("th", { scope: "row", colspan: 2 }, tell("head.sum")),
          h("td", {}, wide(result.total)),
          h("td", {}, number(sum(result.weights), 4)),
          h("td"),
        ),
      ],
    }),
    h(
      "p",
      { class: "data-line" },
      tell("attention.entropy"),
      "\u2002",
      number(entropy(result.weights), 3),
    ),
    note(
      "head.own_weights",
      { difference: wide(difference) },
      { class: difference < 1e-4 ? "note good" : "note bad" },
    ),
  ];
}

function contextStep({ detail, src }, chosen) {
  const { step } = detail;
  const parts = [
    subheading("scores.context"),
    paragraph(
      "scores.context_text",
      { count: String(src.tokens.length), size: String(detail.memory_size) },
    ),
  ];
  const weights = vector(detail.weights, chosen.step);
  const values = rowsOf(step.values);
  const own = vector(detail.contexts, chosen.step);
  const context = own.map((_, d) => sum(weights.map((weight, key) => weight * values[key][d])));
  const most = largestSize(
    [...values.flatMap((row, key) => row.map((x) => x * weights[key])), ...context],
  );
  const heavy = range(src.tokens.length).filter((key) => weights[key] >= 0.02);
  const terms = range(src.tokens.length).flatMap(
    (key, i) => [
      i ? " + " : "",
      h(
        "span",
        { class: "term" },
        number(weights[key], 3),
        " \u00d7 ",
        number(values[key][0], 3, factor(values[key][0])),
      ),
    ],
  );
  const difference = largestDifference(context, own);
  return [
    ...parts,
    h("div", { class: "vectors" },
      heavy.map(
        (key) => h(
          "div",
          { class: "vector v" },
          h("span", { class: "letter" }, number(weights[key], 2)),
          h("span", { class: "of" }, "\u00d7 h(", token(src.tokens[key], 12), ")"),
          signedBars(values[key].map((x) => x * weights[key]), most, { mark: 0 }),
        ),
      ),
      h(
        "div",
        { class: "vector out" },
        h("span", { class: "letter" }, "\u03a3"),
        h("span", { class: "of" }, tell("scores.context_name")),
        signedBars(context, most, { mark: 0, label: tell("scores.context_name") }),
      )),
    note("common.bars", { most: format(most, 2) }),
    h("p", { class: "written weighted" }, terms, " = ", h("strong", {}, number(context[0], 4))),
    note(
      "scores.own_context",
      { own: number(own[0], 4), difference: wide(difference), count: String(own.length) },
      { class: difference < 1e-4 ? "note good" : "note bad" },
    ),
  ];
}

parts.context = function drawContext(sentence) {
  const { detail, src } = sentence;
  const context = vector(detail.context);
  const most = largestSize(context);
  const lengths = range(40).map((i) => i + 1);
  const lines = range(Math.ceil(context.length / 128)).map(
    (i) => context.slice(128 * i, 128 * (i + 1)),
  );
  return [
    record.model.options.bidirectional ? paragraph("context.both") : null,
    subheading("context.vector"),
    paragraph(
      detail.context_at_every_step ? "context.every_step" : "context.start_only",
      { size: String(context.length) },
    ),
    h(
      "div",
      { class: "context-vector" },
      lines.map((line) => signedBars(line, most, { label: tell("context.vector") })),
    ),
    note("common.bars", { most: format(most, 2) }),
    details(
      tell("positions.all_numbers", { size: String(context.length) }),
      () => h("p", { class: "written" }, context.flatMap((x) => [number(x, 3), "  "])),
    ),
    subheading("context.cost"),
    h(
      "p",
      { class: "data-line" },
      say(
        "context.per_token",
        {
          size: String(context.length),
          count: String(src.tokens.length),
          each: number(detail.numbers_per_token, 1),
        },
      ),
    ),
    chart(
      {
        label: tell("context.per_token_chart"),
        xs: lengths,
        mark: clamp(src.tokens.length, 1, 40),
        xLabel: tell("context.tokens"),
        yLabel: "",
        log: true,
        series: [{ values: lengths.map((n) => context.length / n), className: "first" }],
      },
    ),
    h("p", { class: "axis" }, tell("context.log")),
    details(
      tell("common.as_table"),
      () => table(
        {
          caption: tell("context.per_token_chart"),
          className: "compact",
          head: [tell("context.tokens"), tell("context.numbers")],
          rows: lengths.map((n) => [String(n), number(context.length / n, 1)]),
        },
      ),
    ),
    drawInfluence(detail, src),
    paragraph("context.remedy"),
  ];
};

/** How far the context vector moves when a token is left out: what is left of each token in it. */
function drawInfluence({ influence = [], lengths = [] }, src) {
  const shares = influence.map((x) => x ?? 0);
  const xs = lengths.map((item) => item.source_tokens);
  const values = lengths.map((item) => item.influence);
  return [
    influence.length > 0 ? [
      subheading("context.influence"),
      paragraph("context.influence_text"),
      table({
        caption: tell("context.influence_column"), className: "scores",
        head: [tell("tokens.token"), tell("context.influence_column"), ""],
        rows: src.tokens.flatMap(
          (text, s) => (
            influence[s] === null ? [] : [
              [token(text, 20), number(influence[s], 3), bar(shares[s] / Math.max(...shares))],
            ]
          ),
        ),
      })] : null,
    lengths.length > 1 ? [
      subheading("context.lengths"),
      paragraph("context.lengths_text"),
      chart(
        {
          label: tell("context.lengths"),
          xs,
          xLabel: tell("context.tokens"),
          yLabel: "",
          series: [{ values, className: "first", dots: true }],
        },
      ),
      details(
        tell("common.as_table"),
        () => table(
          {
            caption: tell("context.lengths"),
            className: "compact",
            head: [tell("context.tokens"), tell("context.influence_mean")],
            rows: lengths.map((item) => [String(item.source_tokens), number(item.influence, 3)]),
          },
        ),
      )] : null,
  ];
}
