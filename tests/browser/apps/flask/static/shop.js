document.getElementById("script").textContent = "the script runs";
