"""The page's style sheet, with light and dark colors. It needs no external resources."""

CSS = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1b2330; --quiet: #667085;
  --rule: #e3e7ee; --grid: #edf0f5; --s0: #2563d9; --s1: #e0731d; --s2: #0f9470; --s3: #b83280;
  --s4: #7446c7; --s5: #a47a00; --s6: #0788a5; --s7: #cf3b3b; --c-step: #2f9e6e;
  --c-repeated: #cf3b3b; --c-compile: #7446c7; --c-checkpoint: #2563d9; --c-evaluation: #0788a5;
  --c-data: #e0731d; --c-restart: #b83280; --c-other: #a3acb9; --warn: #b42318;
  --warn-paper: #fef0ee; }
@media (prefers-color-scheme: dark) { :root { --paper: #10141b; --card: #181e28; --ink: #e6eaf1;
  --quiet: #94a0b3; --rule: #2a3342; --grid: #222a37; --s0: #6ea0ff; --s1: #ff9f55; --s2: #45cfa4;
  --s3: #f07ab8; --s4: #b394f5; --s5: #dcb440; --s6: #4fc6e0; --s7: #ff7b74; --c-step: #3fbf8b;
  --c-repeated: #ff7b74; --c-compile: #b394f5; --c-checkpoint: #6ea0ff; --c-evaluation: #4fc6e0;
  --c-data: #ff9f55; --c-restart: #f07ab8; --c-other: #66707f; --warn: #ff9a8f;
  --warn-paper: #35191a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1220px; margin: 0 auto; padding: 34px 24px 60px; }
h1 { font-size: 27px; line-height: 1.25; margin: 2px 0 4px; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 14.5px; margin: 0 0 10px; }
.eyebrow { color: var(--quiet); font-size: 12px; letter-spacing: .09em; text-transform: uppercase; }
.quiet, figcaption { color: var(--quiet); }
.cards, .grid { display: grid; gap: 16px; margin-top: 18px; }
.cards { grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); }
.grid { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 16px 18px; min-width: 0; }
.wide { grid-column: 1 / -1; }
.figure { font-size: 29px; font-weight: 650; letter-spacing: -.02em; line-height: 1.25; }
.card small, td small { display: block; color: var(--quiet); font-size: 11.5px; line-height: 1.4;
  overflow-wrap: anywhere; }
figure { margin: 0; } figcaption { font-size: 12px; margin-top: 6px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--quiet); font-size: 11px; } svg text.strong { fill: var(--ink); }
line.grid { stroke: var(--grid); } line.axis { stroke: var(--rule); }
line.event { stroke: var(--quiet); stroke-dasharray: 3 3; stroke-width: 1.2; }
polyline { fill: none; stroke: currentColor; stroke-linejoin: round; } polyline.raw { opacity: .35;
  stroke-width: .9; }
polyline.line { stroke-width: 2; } polyline.dash { stroke-width: 2; stroke-dasharray: 6 4; }
circle.point { fill: currentColor; } circle.point:hover { opacity: .7; }
circle.mark { fill: var(--card); stroke: currentColor; stroke-width: 2; }
rect.band { fill: var(--ink); fill-opacity: 0; } rect.band:hover { fill-opacity: .07; }
rect.segment { fill: currentColor; stroke: var(--card); stroke-width: 1; }
  rect.segment:hover { opacity: .8; }
.legend { display: flex; flex-wrap: wrap; gap: 3px 18px; list-style: none; margin: 0 0 8px;
  padding: 0; font-size: 12.5px; }
th i { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  background: currentColor; margin-right: 7px; }
.legend.after { margin: 12px 0 0; } .legend b { font-weight: 600; }
.legend.listed { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr));
  gap: 0 30px; }
.legend.listed li { display: flex; align-items: center; padding: 3.5px 0;
  border-bottom: 1px solid var(--grid); }
.legend.listed span { flex: 1; display: flex; justify-content: space-between; gap: 12px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  background: currentColor; margin-right: 6px; }
.legend i.dash { height: 0; width: 16px; border-radius: 0; background: none;
  border-top: 2px dashed currentColor; vertical-align: 4px; }
.legend i.ring { border-radius: 50%; background: none; border: 2px solid currentColor; }
.legend span { color: var(--ink); }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); }
  .s3 { color: var(--s3); }
.s4 { color: var(--s4); } .s5 { color: var(--s5); } .s6 { color: var(--s6); }
  .s7 { color: var(--s7); }
.c-step { color: var(--c-step); } .c-repeated { color: var(--c-repeated); }
  .c-compile { color: var(--c-compile); }
.c-checkpoint { color: var(--c-checkpoint); } .c-evaluation { color: var(--c-evaluation); }
  .c-data { color: var(--c-data); }
.c-restart { color: var(--c-restart); } .c-other { color: var(--c-other); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 6px 18px 6px 0; vertical-align: top; } th { font-weight: 600;
  font-size: 14.5px; overflow-wrap: anywhere; }
tbody tr + tr td { border-top: 1px solid var(--grid); } tr.section td { padding-top: 20px;
  font-weight: 650; }
td:first-child { color: var(--quiet); white-space: pre; }
  tr.section td:first-child { color: var(--ink); }
td.number, th.number { text-align: right; } .yes { color: var(--c-step); } .no { color: var(--warn);
  }
main > .part, main > figure { margin-top: 16px; } .part p { margin: 0; }
.notes { margin-top: 18px; } .notes ul { margin: 0; padding-left: 18px; }
  .notes li + li { margin-top: 3px; }
.warning { background: var(--warn-paper); color: var(--warn); border-color: transparent; }
footer { margin-top: 30px; font-size: 12px; color: var(--quiet); }
@media (max-width: 820px) { .grid { grid-template-columns: minmax(0, 1fr); }
  main { padding: 20px 14px 40px; } .wide svg text { font-size: 23px; }
  .wide polyline.line { stroke-width: 4; } .wide circle.mark { stroke-width: 4; } }
@media print { body { background: none; } .card { break-inside: avoid; } }
"""
