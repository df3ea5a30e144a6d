"""The style sheet of the report, for light and dark pages and for print."""

from __future__ import annotations

CSS = """
:root { --page:#f5f6f9; --card:#fff; --ink:#1f2430; --muted:#667085; --line:#e2e5ec; --soft:#f2f4f8; --blue:#2459c4;
  --green:#17803d; --red:#b42318; --amber:#9a4b06; --code:#eef2fb; }
@media (prefers-color-scheme: dark) { :root { --page:#0f1116; --card:#171a21; --ink:#e8eaf0; --muted:#98a1b3;
  --line:#2b303b; --soft:#1d212a; --blue:#7aa7ff; --green:#5fce85; --red:#ff8a7d; --amber:#f0a04b; --code:#1c2436; } }
* { box-sizing:border-box }
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",Arial,sans-serif; }
main { max-width:1080px; margin:0 auto; padding:40px 20px 80px }
header h1 { font-size:28px; line-height:1.2; margin:0 0 6px; letter-spacing:-.01em }
header p { margin:0 0 26px; color:var(--muted) } header i { opacity:.6; font-style:normal; padding:0 4px }
section { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:22px 24px; margin:18px 0 }
h2 { font-size:17px; margin:0 0 14px } section > p:last-child { margin-bottom:0 } section > p { margin-top:0 }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(165px,1fr)); gap:14px }
.tile { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:16px 18px }
.tile span,.tile em { display:block; color:var(--muted); font-size:13px; font-style:normal }
.tile strong { display:block; font-size:25px; line-height:1.35; font-variant-numeric:tabular-nums; font-weight:650 }
.tile.strong strong { color:var(--blue) } .tile.good em { color:var(--green) } .tile.bad em { color:var(--red) }
.chart img { width:100%; height:auto; display:block; border-radius:6px }
.scroll { overflow-x:auto }
table { border-collapse:collapse; width:100%; font-size:14px; font-variant-numeric:tabular-nums }
th { text-align:right; color:var(--muted); font-weight:500; font-size:13px; border-bottom:1px solid var(--line) }
th,td { padding:7px 10px; white-space:nowrap } td { text-align:right; border-bottom:1px solid var(--line) }
th:first-child,td:first-child { text-align:left; padding-left:0; font-weight:550 }
th:last-child,td:last-child { padding-right:0 } tbody tr:last-child td { border-bottom:0 }
.wordy th:last-child,.wordy td:last-child { text-align:left; white-space:normal; min-width:190px; padding-left:18px }
.wordy td { vertical-align:top }
dl { display:grid; grid-template-columns:max-content 1fr; gap:5px 24px; margin:0; font-size:14px }
dt { color:var(--muted) } dd { margin:0; overflow-wrap:anywhere }
summary { cursor:pointer }
pre { font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; white-space:pre-wrap; overflow-wrap:anywhere;
  margin:6px 0 0; unicode-bidi:isolate }
.episode { border-top:1px solid var(--line); padding:12px 0 } .episode:first-of-type { border-top:0; padding-top:0 }
.episode:last-of-type { padding-bottom:0 } .episode > summary span { font-weight:550; margin-right:10px }
.chip { display:inline-block; background:var(--soft); border:1px solid var(--line); color:var(--muted); font-size:12px;
  font-weight:500; border-radius:99px; padding:0 9px; margin:2px 4px 2px 0; white-space:nowrap }
.chip.good { color:var(--green) }
.message { border-left:3px solid var(--line); padding:2px 0 2px 14px; margin:12px 0 }
.message.assistant { border-color:var(--blue) } .message.tool { border-color:var(--amber) }
.role { font-size:12.5px; font-weight:600; color:var(--muted) } .role .chip { margin-left:8px }
.assistant .role { color:var(--blue) } .tool .role { color:var(--amber) }
.call { background:var(--code); border-radius:6px; padding:6px 10px } .thought { color:var(--muted); font-style:italic }
.call.wrong,.earned.bad { color:var(--red) } .earned { color:var(--muted); font-size:13.5px; margin:8px 0 0 }
@media print { body { background:#fff } section,.tile { break-inside:avoid } }
"""
