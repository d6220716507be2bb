// The running and waiting requests as a table: for screen readers, and for everybody who asks for it.

import { html } from "./vendor/preact.js";

const MAX_ROWS = 200;
const COLUMNS = ["Request", "Image", "Denoiser", "State", "Step", "Size", "Rows", "Model"];

/** The rows of the table as it is now. mine: Map from live id to {label} */
export function rowsOf(history, mine) {
  const reports = [...history.denoisers.values()].filter((denoiser) => denoiser.goneAt === null);
  return reports.flatMap(({ id, report }) =>
    report.requests
      .filter((request) => request.left_at === null)
      .map((request) => ({
        denoiser: id,
        name: mine.get(request.id)?.label ?? request.id,
        isMine: mine.has(request.id),
        ...request,
      })),
  );
}

/** rows: of rowsOf; changes seldom, and is never announced. */
export function Table({ rows, isShown }) {
  const shown = rows.slice(0, MAX_ROWS);
  const left = rows.length - shown.length;
  return html`
    <div
      id="live-table"
      class=${isShown ? "live-table" : "unseen"}
      tabindex=${isShown ? 0 : undefined}
      role="region"
      aria-label="Requests in the denoisers"
      aria-live="off"
    >
      ${shown.length ? html`<${Rows} rows=${shown} />` : html`<p>No request is in a denoiser.</p>`}
      ${left > 0 && html`<p>and ${left} more</p>`}
    </div>
  `;
}

function Rows({ rows }) {
  return html`
    <table>
      <caption>
        Requests in the denoisers
      </caption>
      <thead>
        <tr>
          ${COLUMNS.map((name) => html`<th key=${name} scope="col">${name}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          (row) => html`
            <tr key=${`${row.denoiser}/${row.id}/${row.image}/${row.pass}`}>
              <th scope="row">${row.isMine ? "Yours: " : ""}${row.name}</th>
              <td>${row.image + 1}</td>
              <td>${row.denoiser}</td>
              <td>${row.state}</td>
              <td>${row.step} of ${row.steps}</td>
              <td>${row.width}×${row.height}</td>
              <td>${row.rows}</td>
              <td>${row.model ?? "–"}</td>
            </tr>
          `,
        )}
      </tbody>
    </table>
  `;
}
