// Pictures to start from that people choose, paste or drop.

import { startFromFile } from "./draft.js";
import { say } from "./notices.js";
import { useEffect, useState } from "./vendor/preact.js";

/** Takes pictures that are pasted or dropped anywhere on the page. Answers whether one is over it. */
export function useGivenPictures(setErrors) {
  const [isDropping, setIsDropping] = useState(false);
  useEffect(() => {
    const listening = new AbortController();
    const on = (name, listener) => addEventListener(name, listener, { signal: listening.signal });
    const take = (event, { files }) => {
      const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
      if (!file) return;
      event.preventDefault(); // the browser would show the file instead of the page
      if (document.querySelector("dialog[open]")) return; // such as a mask for the picture that is there
      takeFile(file, setErrors, "The next picture starts from yours.");
    };
    on("paste", (event) => {
      // Programs for texts and tables put a picture beside what was copied; in a field people mean the text.
      const isText = event.target.matches("input, textarea") && event.clipboardData.types.includes("text/plain");
      if (!isText) take(event, event.clipboardData);
    });
    on("drop", (event) => {
      setIsDropping(false);
      take(event, event.dataTransfer);
    });
    on("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      setIsDropping(true);
    });
    on("dragleave", (event) => event.relatedTarget === null && setIsDropping(false));
    return () => listening.abort();
  }, []);
  return isDropping;
}

/** Makes a file the picture to start from, and says why if it is none. text: said if it is one */
export async function takeFile(file, setErrors, text) {
  try {
    await startFromFile(file);
    setErrors({});
    if (text) say(text);
  } catch (error) {
    setErrors({ image: error.message });
  }
}
