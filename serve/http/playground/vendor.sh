#!/bin/sh
# Makes static/vendor: the page's only library, Preact (MIT) and htm (Apache-2.0) in one file, and their licenses.
# Needs npm, and is only run to take newer versions.
set -eu
cd "$(dirname "$0")"
preact=11.2.0 htm=3.1.1 esbuild=0.28.2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" "preact@$preact" "htm@$htm" "esbuild@$esbuild"
cat > "$folder/preact.js" <<'MODULE'
import { Fragment, h, render } from "preact";
import htm from "htm";
export * from "preact/hooks";
export const html = htm.bind(h);
export { Fragment, h, render };
MODULE
"$folder/node_modules/.bin/esbuild" "$folder/preact.js" --bundle --minify --format=esm --log-level=warning \
    --banner:js="/* Preact $preact (MIT, Jason Miller) and htm $htm (Apache-2.0, Jason Miller), by vendor.sh. */" \
    --outfile=static/vendor/preact.js
for name in preact htm; do
    printf '%s\n\n' "$name"
    cat "$folder/node_modules/$name/LICENSE"
    printf '\n'
done > static/vendor/LICENSES.txt
