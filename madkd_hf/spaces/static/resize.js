// Resizes as Pillow does, with its filters and its integers, and crops as transformers does, at whole pixels: a student
// was trained with such images. A canvas leaves out pixels where it makes a photograph much smaller, and crops between them.
// Rows come first, as in Pillow up to 12; 13 begins with the columns of some tall images, and rounds in another order.

const PRECISION = 2 ** 22;
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = {  // by Pillow's numbers: half of the width, and the filter
  1: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
  2: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  3: [2, bicubic],
  4: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  5: [1, (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)))],
};

function bicubic(x) {
  const a = -0.5, d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
}

// For each of `after` places, where its pixels begin among `before`, and their weights.
function weights(before, after, [halfWidth, filter]) {
  const scale = before / after, stretch = Math.max(scale, 1), support = halfWidth * stretch, found = [];
  for (let place = 0; place < after; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5)), last = Math.min(before, Math.trunc(centre + support + 0.5));
    const row = Array.from({ length: last - first }, (_, k) => filter((k + first - centre + 0.5) * (1 / stretch)));
    const sum = row.reduce((a, b) => a + b, 0);
    found.push([first, row.map((weight) => {
      const scaled = (sum ? weight / sum : weight) * PRECISION;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    })]);
  }
  return found;
}

// Along rows (step 1) or columns: `lines` of them, whose pixels are `step` apart.
function along(pixels, result, table, lines, lineBefore, lineAfter, stepBefore, stepAfter) {
  for (let line = 0; line < lines; line++) {
    for (let place = 0; place < table.length; place++) {
      const [first, row] = table[place];
      for (let channel = 0; channel < 3; channel++) {
        let sum = PRECISION / 2, from = line * lineBefore + first * stepBefore + channel;
        for (let k = 0; k < row.length; k++, from += stepBefore) sum += pixels[from] * row[k];
        result[line * lineAfter + place * stepAfter + channel] = Math.max(0, Math.min(255, Math.floor(sum / PRECISION)));
      }
    }
  }
  return result;
}

function nearest(pixels, width, height, newWidth, newHeight) {
  const result = new Uint8ClampedArray(newWidth * newHeight * 3);
  for (let y = 0, to = 0; y < newHeight; y++) {
    const row = Math.floor(((y + 0.5) * height) / newHeight) * width;
    for (let x = 0; x < newWidth; x++) {
      const from = 3 * (row + Math.floor(((x + 0.5) * width) / newWidth));
      for (let channel = 0; channel < 3; channel++) result[to++] = pixels[from + channel];
    }
  }
  return result;
}

// `pixels`: RGB, row by row; `resample`: Pillow's number of a filter.
export function resize(pixels, width, height, newWidth, newHeight, resample) {
  if (resample === 0) return nearest(pixels, width, height, newWidth, newHeight);
  const filter = FILTERS[resample] ?? FILTERS[2];
  let done = pixels;
  if (newWidth !== width) {
    const result = new Uint8ClampedArray(newWidth * height * 3);
    done = along(done, result, weights(width, newWidth, filter), height, width * 3, newWidth * 3, 3, 3);
  }
  if (newHeight !== height) {
    const result = new Uint8ClampedArray(newWidth * newHeight * 3);
    done = along(done, result, weights(height, newHeight, filter), newWidth, 3, 3, newWidth * 3, newWidth * 3);
  }
  return done;
}

// The middle of an image, and black around it where it is smaller.
export function crop(pixels, width, height, newWidth, newHeight) {
  const result = new Uint8ClampedArray(newWidth * newHeight * 3);
  const left = Math.floor((width - newWidth) / 2), top = Math.floor((height - newHeight) / 2);
  const from = Math.max(0, left), to = Math.min(width, left + newWidth);
  for (let y = Math.max(0, top); y < Math.min(height, top + newHeight); y++) {
    const row = pixels.subarray(3 * (y * width + from), 3 * (y * width + to));
    result.set(row, 3 * ((y - top) * newWidth + from - left));
  }
  return result;
}
