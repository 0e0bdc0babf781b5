// Which page is meant. The list needs no plotly, so that nothing of it is loaded there.

const content = document.getElementById("content");
const query = new URLSearchParams(location.search);
if (location.pathname === "/study" && query.has("place") && query.has("study")) (await import("./study.js")).showStudy(content, query);
else if (location.pathname === "/compare") (await import("./compare.js")).showComparison(content, query);
else (await import("./list.js")).showList(content);
