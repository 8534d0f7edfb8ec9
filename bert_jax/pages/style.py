"""The style of a page: readable from a phone's width on, and in print."""

CSS = """
:root { color-scheme: light; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; max-width: 48rem; }
.soft { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.fact { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem; }
.fact b { display: block; font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere; }
.fact span { color: var(--soft); font-size: .85rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
.plot { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .7rem .3rem; min-width: 0; }
.plot h3 { margin: 0; font-weight: 600; font-size: .95rem; }
svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .5rem 0; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); }
td { overflow-wrap: anywhere; min-width: 3.5rem; max-width: 34rem; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.guesses td, .guesses th, .confusion td { white-space: nowrap; }
.sample { margin-top: 1.1rem; }
mark { background: #fef3c7; padding: 0 .15em; }
.right { color: #15803d; font-weight: 600; }
.wrong { color: #b91c1c; }
.shade { display: block; padding: .1rem .6rem; text-align: right; border-radius: 3px; }
small { color: var(--soft); }
@media print { body { max-width: none; } .plot, table { break-inside: avoid; } }
"""
