// Which page is meant.

import { showList } from "./list.js";
import { showStudy } from "./study.js";

const content = document.getElementById("content");
const query = new URLSearchParams(location.search);
if (location.pathname === "/study" && query.has("place") && query.has("study")) showStudy(content, query);
else showList(content);
