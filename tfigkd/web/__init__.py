"""The page that classifies in a browser: its command, its HTML and scripts, and the LiteRT.js that it runs on."""
