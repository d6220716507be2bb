// Mouse, finger, pen and keys of the painter of masks. tool: {brushPx, isErasing, size, move, mask}

import { useLayoutEffect, useRef } from "./vendor/preact.js";

const RIGHT_BUTTON = 2;
const ERASER_BUTTON = 5; // of a pen
const SLIDER_STEPS = 6; // of a press of [ or ]
const STEP = 1 / 4; // of the brush, for a press of an arrow key
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** A function that moves the ring that shows the brush to a point, in pixels of the picture; it answers where it is. */
export function useCursor(ring, size, brushPx) {
  const at = useRef({ x: size.width / 2, y: size.height / 2 });
  const place = () => {
    const style = ring.current?.style;
    if (!style) return;
    style.left = `${(at.current.x / size.width) * 100}%`;
    style.top = `${(at.current.y / size.height) * 100}%`;
    style.width = `${(brushPx / size.width) * 100}%`;
  };
  useLayoutEffect(place);
  return (point) => {
    if (point) {
      at.current = point;
      place();
    }
    return at.current;
  };
}

/** The canvas's handlers of pointers. One pointer paints at a time; a second finger does nothing. */
export function usePointer({ brushPx, isErasing, size, move, mask }) {
  const painting = useRef(null); // id of the pointer
  const end = ({ pointerId }) => {
    if (pointerId !== painting.current) return;
    painting.current = null;
    mask.end();
  };
  return {
    onPointerDown(event) {
      if (painting.current !== null || event.button === 1) return;
      painting.current = event.pointerId;
      event.currentTarget.setPointerCapture(event.pointerId);
      mask.begin(
        move(pointOf(event, size)),
        brushPx,
        isErasing || [RIGHT_BUTTON, ERASER_BUTTON].includes(event.button),
      );
    },
    onPointerMove(event) {
      const isPainting = event.pointerId === painting.current;
      if (painting.current !== null && !isPainting) return;
      move(pointOf(event, size));
      if (isPainting) mask.extend(coalesced(event).map((each) => pointOf(each, size, event.currentTarget)));
    },
    onPointerUp: end,
    onPointerCancel: end,
    onContextMenu: (event) => event.preventDefault(),
  };
}

/** The painter's handlers of keys. canvas: a ref; only there arrows and Space are the brush's */
export function useKeys({ brushPx, isErasing, size, move, mask }, canvas, { onErase, onResize }) {
  const isDown = useRef(false); // Space
  const end = () => {
    if (!isDown.current) return;
    isDown.current = false;
    mask.end();
  };
  const go = ([x, y], isFast) => {
    const step = Math.max(1, brushPx * STEP) * (isFast ? 4 : 1);
    const from = move();
    const to = move({ x: within(from.x + x * step, size.width), y: within(from.y + y * step, size.height) });
    if (isDown.current) mask.extend([to]);
  };
  const paint = () => {
    if (isDown.current) return; // the key repeats itself
    isDown.current = true;
    mask.begin(move(), brushPx, isErasing);
  };
  const actions = { e: onErase, E: onErase, "[": () => onResize(-SLIDER_STEPS), "]": () => onResize(SLIDER_STEPS) };
  const actionOf = ({ key, target, ctrlKey, metaKey, altKey, shiftKey }) => {
    if (ctrlKey || metaKey) return key === "z" ? () => (end(), mask.undo()) : null;
    if (altKey) return null;
    if (target === canvas.current && ARROWS[key]) return () => go(ARROWS[key], shiftKey);
    if (target === canvas.current && key === " ") return paint;
    return actions[key] ?? null;
  };
  return {
    onKeyDown(event) {
      const action = actionOf(event);
      if (!action) return;
      event.preventDefault();
      action();
    },
    onKeyUp: ({ key }) => key === " " && end(),
    onFocusOut: end,
  };
}

/** Where a pointer is, in pixels of the picture. */
function pointOf(event, size, target = event.currentTarget) {
  const box = target.getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) / box.width) * size.width,
    y: ((event.clientY - box.top) / box.height) * size.height,
  };
}

/** The places between two events, which a browser may put into one. */
function coalesced(event) {
  const all = event.getCoalescedEvents?.() ?? [];
  return all.length ? all : [event];
}

function within(value, most) {
  return Math.min(most, Math.max(0, value));
}
