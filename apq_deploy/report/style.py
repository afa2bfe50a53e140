"""The page's style sheet: light and dark, phone, desk and paper.

Colours: Okabe and Ito, "Color universal design" (2008), with lighter ones of the set on dark ground.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --panel: #f4f5f7; --ink: #1b1f24; --faint: #5a626c; --rule: #d9dde2; --frame: #8b939d;
  --t1: #0072b2; --t2: #d55e00; --t3: #009e73; --t4: #7a828c; --good: #00704f; --bad: #b23c00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --panel: #1e2329; --ink: #e8eaed; --faint: #a3abb5; --rule: #343b44; --frame: #78818c;
    --t1: #56b4e9; --t2: #e69f00; --t3: #2fc49b; --t4: #9aa3ad; --good: #4fd1ac; --bad: #ff9a5c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.2rem 0 0.8rem; }
h2 { font-size: 1.25rem; margin: 0 0 0.8rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 0.5rem; }
p { margin: 0.6rem 0; }
section { border-top: 1px solid var(--rule); padding: 1.6rem 0 1.2rem; }
.over, .note, .faint, .remark, figcaption, dt { color: var(--faint); }
.over { margin: 0; font-size: 0.9rem; }
.note { font-size: 0.9rem; max-width: 46rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; margin-bottom: 1rem; font-size: 0.9rem; }
a { color: var(--t1); }
.verdict { font-size: 1.1rem; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.7rem; margin: 1rem 0; }
.tile { background: var(--panel); border-radius: 8px; padding: 0.7rem 0.8rem; display: flex; flex-direction: column; }
.tile .name { font-size: 0.85rem; } .tile .value { font-size: 1.45rem; font-weight: 600; line-height: 1.3; }
.tile .remark { font-size: 0.8rem; line-height: 1.35; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.4rem 2.4rem; }
figure { margin: 0.4rem 0; max-width: 31rem; }
figcaption { font-size: 0.9rem; margin-bottom: 0.4rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--ink); font-family: inherit; }
svg text.faint { fill: var(--faint); } svg text.strong { font-weight: 600; }
.rule { stroke: var(--rule); stroke-width: 1; }
.limit { stroke: var(--frame); stroke-width: 1.4; stroke-dasharray: 2 3; }
.whisker { stroke: var(--ink); stroke-width: 1; opacity: 0.75; }
.arrow { stroke: var(--frame); stroke-width: 1.5; fill: none; }
.channels { fill: var(--frame); }
.stroke { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .dashed { stroke-dasharray: 6 3; }
.stroke.t1 { stroke: var(--t1); } .stroke.t2 { stroke: var(--t2); }
.stroke.t3 { stroke: var(--t3); } .stroke.t4 { stroke: var(--t4); }
.fill.t1 { fill: var(--t1); } .fill.t2 { fill: var(--t2); } .fill.t3 { fill: var(--t3); } .fill.t4 { fill: var(--t4); }
.hollow { fill: none; stroke-width: 1.5; stroke-dasharray: 3 2; }
.hollow.t1 { stroke: var(--t1); } .hollow.t2 { stroke: var(--t2); }
.mark { stroke: var(--ground); stroke-width: 0.8; } .mark.dot { stroke: none; }
.mark.t1 { fill: var(--t1); } .mark.t2 { fill: var(--t2); } .mark.t3 { fill: var(--t3); } .mark.t4 { fill: var(--t4); }
.bits { stroke: none; }
.b2 { fill: #f0e442; } .b3 { fill: #f7b98b; } .b4 { fill: #e69f00; } .b5 { fill: #cc79a7; }
.b6 { fill: #56b4e9; } .b7 { fill: #009e73; } .b8 { fill: #0072b2; }
svg text.on-b2, svg text.on-b3, svg text.on-b4, svg text.on-b5, svg text.on-b6, svg text.on-b7 { fill: #000000; }
svg text.on-b8 { fill: #ffffff; }
.legend { list-style: none; margin: 0.5rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; }
.legend li { display: flex; align-items: center; gap: 0.4rem; font-size: 0.85rem; }
.legend.wide { margin: 0 0 1rem; }
.swatch { width: 22px; height: 14px; flex: none; }
.scroll { overflow-x: auto; margin: 0.8rem 0; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.9rem 0.25rem 0; }
tr > * { border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; } th { font-weight: 500; } thead th { color: var(--faint); white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.wider { white-space: nowrap; } .wider b { font-weight: 600; }
.free { outline: 2px solid var(--t2); outline-offset: 1px; border-radius: 3px; padding: 0 0.2rem; }
.sentences { padding-left: 1.2rem; } .sentences li { margin: 0.3rem 0; }
.missing { background: var(--panel); border-left: 4px solid var(--t2); padding: 0.7rem 0.9rem; border-radius: 4px; }
code { font-family: ui-monospace, "Liberation Mono", Menlo, Consolas, monospace; font-size: 0.9em; }
dl { margin: 0.6rem 0; }
dl div { display: grid; grid-template-columns: 11rem 1fr; gap: 0.2rem 1rem; padding: 0.25rem 0; }
dd { margin: 0; }
details { margin: 0.6rem 0; } summary { cursor: pointer; color: var(--t1); font-size: 0.9rem; }
pre { white-space: pre-wrap; font-size: 0.75rem; background: var(--panel); padding: 0.8rem; border-radius: 6px; }
@media (max-width: 34rem) {
  body { padding: 0.8rem; }
  h1 { font-size: 1.3rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tile .value { font-size: 1.2rem; }
  table { font-size: 0.8rem; } thead th { white-space: normal; } th, td { padding-right: 0.5rem; }
  .wider b { display: block; } .free { display: inline-block; }
  dl div { grid-template-columns: 1fr; gap: 0; }
}
@media print {
  :root {
    color-scheme: light;
    --ground: #ffffff; --panel: #f4f5f7; --ink: #000000; --faint: #444444; --rule: #cccccc; --frame: #777777;
    --t1: #0072b2; --t2: #d55e00; --t3: #009e73; --t4: #7a828c; --good: #00704f; --bad: #b23c00;
  }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  @page { size: A4; margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .screen-only, #records { display: none; }
  .grid { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem 1.6rem; }
  figure, .tile, tr, .missing { break-inside: avoid; }
  h2, h3, figcaption, .legend.wide { break-after: avoid; }
  section { padding: 0.8rem 0; }
  .scroll { overflow: visible; } table { font-size: 8pt; } th, td { padding-right: 0.5rem; }
  details.printed::details-content { content-visibility: visible; block-size: auto; }
  summary { list-style: none; color: var(--faint); }
}
"""
