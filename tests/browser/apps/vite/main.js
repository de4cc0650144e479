import { message } from "./message.js";
import "./style.css";

document.getElementById("loads").textContent = String(performance.timeOrigin);
document.getElementById("message").textContent = message;
import.meta.hot.accept("./message.js", (changed) => {
  document.getElementById("message").textContent = changed.message;
});
