// The scan on the page: three planes and a 3D view with NiiVue, the crosshair, windows, segments and the box of a chosen place.
(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const byId = (id) => document.getElementById(id);
  const listeners = { place: [], window: [] };
  window.velvetmed = { page, viewer: null, listeners };

  const stage = byId("stage");
  const AXES = [["R", "L"], ["A", "P"], ["S", "I"]];
  const SLICE = { axial: 0, coronal: 1, sagittal: 2 };
  const QUARTERS = [
    { sliceType: 0, position: [0, 0, 0.5, 0.5] },
    { sliceType: 1, position: [0, 0.5, 0.5, 0.5] },
    { sliceType: 2, position: [0.5, 0.5, 0.5, 0.5] },
  ];
  // In-plane axes of each slice, left-right first, as indices into an RAS point.
  const IN_PLANE = [[0, 1], [0, 2], [1, 2]];
  // Share of the overlay's opacity: organs stay light so that the scan is seen through them; lesions and the chosen one stand out.
  const QUIET = { plain: 0.55, dimmed: 0.2 };
  const GHOST_ALPHA = 5;
  const INTENT_LABEL = 1002;
  const COMMON = { logLevel: "error", isAntiAlias: false, dragAndDropEnabled: false, loadingText: "", fontColor: [0.36, 0.72, 0.7, 1] };

  function stills(reason) {
    if (reason) byId("fallback-reason").textContent = reason;
    root.dataset.state = "stills";
  }

  if (!stage) {
    root.dataset.state = "ready";
    return;
  }
  if (!page.has_viewer) {
    stills();
    return;
  }
  if (!document.createElement("canvas").getContext("webgl2")) {
    stills("The viewer needs WebGL 2, and this browser does not offer it.");
    return;
  }

  function bytes(id) {
    const text = atob(byId(id).textContent);
    const out = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) out[i] = text.charCodeAt(i);
    return out.buffer;
  }

  // NiiVue reads a volume from memory when it is given a buffer; the name only tells it the format.
  const image = (buffer, name, options) => niivue.NVImage.loadFromUrl({ url: name, name, buffer: buffer.slice(0), ...options });

  const breathe = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));

  class Viewer {
    constructor() {
      this.shown = new Set(page.segments.map((segment) => segment.label));
      this.selected = null;
      this.opacity = 0.6;
      this.solidMode = page.has_labels ? "segments" : "ct";
      this.outline = false;
      this.pending = false;
      this.solidDue = false;
    }

    async start() {
      this.ctBytes = bytes("ct-data");
      const [low, high] = page.first_window;
      this.planes = new niivue.Niivue({
        ...COMMON,
        backColor: [0, 0, 0, 1],
        crosshairColor: [0.36, 0.78, 0.76, 0.75],
        crosshairWidth: 1,
        crosshairWidthUnit: "mm",
        crosshairGap: 12,
        isRadiologicalConvention: true,
        sagittalNoseLeft: true,
        dragMode: 9,
      });
      await this.planes.attachToCanvas(byId("planes"));
      const ct = await image(this.ctBytes, "ct.nii.gz", { colormap: "gray", cal_min: low, cal_max: high });
      ct.cal_min = low;
      ct.cal_max = high;
      this.planes.addVolume(ct);
      await breathe();
      if (page.has_labels) {
        this.labelBytes = bytes("label-data");
        for (const name of ["quiet", "loud"]) this.planes.addVolume(await this.labelImage(name, 0));
        this.labels = this.planes.volumes[1].img;
        this.paintPlanes();
      }
      this.watch();
      this.setLayout("four");
      byId("veil-text").textContent = "Preparing the 3D view\u2026";
      await breathe();
      this.solid = new niivue.Niivue({ ...COMMON, backColor: [0.027, 0.035, 0.047, 1], show3Dcrosshair: true, crosshairColor: [0.36, 0.78, 0.76, 1], crosshairWidth: 1, isOrientCube: false });
      await this.solid.attachToCanvas(byId("solid"));
      this.solid.setSliceType(this.solid.sliceTypeRender);
      this.solid.setRenderAzimuthElevation(160, 10);
      await this.fillSolid();
      this.goTo({ center_ras_mm: page.start_ras_mm });
    }

    // NiiVue draws when it likes; the box of the chosen place and the captions follow each of its drawings.
    watch() {
      const draw = this.planes.drawScene.bind(this.planes);
      this.planes.drawScene = (...rest) => {
        const result = draw(...rest);
        this.drawBoxes();
        return result;
      };
      this.planes.onLocationChange = (where) => this.moved(where);
      this.planes.onIntensityChange = () => this.tellWindow();
    }

    moved(where) {
      const mm = [where.mm[0], where.mm[1], where.mm[2]];
      const hu = page.has_ct ? Math.round(where.values[0].value) : null;
      const label = this.labelAt(mm);
      this.followInSolid();
      for (const [name, axis] of [["axial", 2], ["coronal", 1], ["sagittal", 0]]) {
        byId(`place-${name}`).textContent = `${Viewer.along(mm[axis], axis)} mm`;
      }
      for (const listener of listeners.place) listener({ mm, hu, label });
    }

    // Drawing in 3D is the dear part: however many moves come within one frame, it is drawn once.
    followInSolid() {
      if (this.solidDue || !this.solid || !this.solid.volumes.length) return;
      this.solidDue = true;
      requestAnimationFrame(() => {
        this.solidDue = false;
        this.solid.scene.crosshairPos = this.solid.mm2frac(this.crosshairMm());
        this.solid.drawScene();
      });
    }

    static along(value, axis) {
      return `${AXES[axis][value < 0 ? 1 : 0]}\u00a0${Math.abs(value).toFixed(1)}`;
    }

    static words(mm) {
      return `${mm.map(Viewer.along).join("  ")} mm`;
    }

    isShown(segment) {
      return this.shown.has(segment.label) || segment.label === this.selected;
    }

    async labelImage(name, opacity) {
      const labels = await image(this.labelBytes, `${name}.nii.gz`, { opacity });
      labels.setColormapLabel(this.colors(() => 255));
      return labels;
    }

    // A colour table for NiiVue. Its shader rounds the lowest values up by two of 256 steps, which would tint the background
    // with the first segment's colour; a few transparent entries below zero (`padding`) keep the background clear.
    colors(alphaOf, padding = 4) {
      const table = { R: [], G: [], B: [], A: [], I: [], labels: [] };
      const add = (index, [red, green, blue], alpha, name) => {
        table.I.push(index);
        table.R.push(red);
        table.G.push(green);
        table.B.push(blue);
        table.A.push(alpha);
        table.labels.push(name);
      };
      for (let index = -padding; index <= 0; index += 1) add(index, [0, 0, 0], 0, "");
      for (const segment of page.segments) add(segment.label, segment.color, this.isShown(segment) ? alphaOf(segment) : 0, segment.name);
      return table;
    }

    // NiiVue gives every segment of one overlay the same strength, so there are two: a quiet one and a loud one.
    isLoud(segment) {
      if (this.outline) return false;
      return this.selected === null ? segment.kind === "lesion" : segment.label === this.selected;
    }

    paintPlanes() {
      const quiet = this.opacity * (this.selected === null ? QUIET.plain : QUIET.dimmed);
      this.paint(this.planes.volumes[1], (segment) => !this.isLoud(segment), quiet);
      this.paint(this.planes.volumes[2], (segment) => this.isLoud(segment), this.opacity);
      this.planes.opts.atlasOutline = this.outline ? Math.max(0.05, this.opacity) : 0;
      this.planes.updateGLVolume();
    }

    // Outlines come from NiiVue's shader for atlases: it acts on volumes of label intent, counts colours from zero, and draws
    // one such overlay only, so that all segments are in the quiet one then.
    paint(volume, belongs, opacity) {
      const kept = new Uint8Array(256);
      for (const segment of page.segments) if (this.isShown(segment) && belongs(segment)) kept[segment.label] = segment.label;
      volume.img = this.labels.map((label) => kept[label]);
      volume.hdr.intent_code = this.outline ? INTENT_LABEL : 0;
      volume.setColormapLabel(this.colors(() => 255, this.outline ? 0 : 4));
      volume.opacity = this.outline ? 0 : opacity;
    }

    solidColors() {
      return this.colors((segment) => (this.selected === null || segment.label === this.selected ? 255 : GHOST_ALPHA));
    }

    labelAt(mm) {
      if (!this.labels) return 0;
      const volume = this.planes.volumes[1];
      const [i, j, k] = volume.mm2vox(mm);
      const [, columns, rows] = volume.hdr.dims;
      return this.labels[i + columns * (j + rows * k)] ?? 0;
    }

    recolor() {
      if (this.pending || !page.has_labels) return;
      this.pending = true;
      requestAnimationFrame(() => {
        this.pending = false;
        this.paintPlanes();
        if (this.solid && this.solidMode === "segments" && this.solid.volumes.length) {
          this.solid.volumes[0].setColormapLabel(this.solidColors());
          this.solid.updateGLVolume();
        }
      });
    }

    async fillSolid() {
      while (this.solid.volumes.length) this.solid.removeVolumeByIndex(0);
      if (this.solidMode === "segments") {
        const labels = await this.labelImage("solid", 1);
        labels.setColormapLabel(this.solidColors());
        this.solid.addVolume(labels);
      } else {
        const ct = await image(this.ctBytes, "ct.nii.gz", { colormap: "ct_bones" });
        ct.cal_min = 130;
        ct.cal_max = 900;
        this.solid.addVolume(ct);
      }
      this.solid.scene.crosshairPos = this.solid.mm2frac(this.crosshairMm());
      await this.solid.setVolumeRenderIllumination(0.65);
    }

    async setSolid(mode) {
      this.solidMode = mode;
      await this.fillSolid();
    }

    crosshairMm() {
      return Array.from(this.planes.frac2mm(this.planes.scene.crosshairPos)).slice(0, 3);
    }

    goTo(place) {
      this.box = place.box_ras_mm || null;
      const label = place.label ?? null;
      if (label !== this.selected) {
        this.selected = label;
        this.recolor();
      }
      this.move(place.center_ras_mm);
    }

    move(mm) {
      const fraction = this.planes.mm2frac(mm).map((part) => Math.min(1, Math.max(0, part)));
      this.planes.scene.crosshairPos = fraction;
      this.center();
      this.planes.drawScene();
      this.planes.createOnLocationChange();
    }

    step(di, dj, dk) {
      const mm = this.crosshairMm();
      const size = page.spacing_mm;
      this.move([mm[0] + di * size, mm[1] + dj * size, mm[2] + dk * size]);
    }

    letGo() {
      this.box = null;
      if (this.selected !== null) {
        this.selected = null;
        this.recolor();
      }
      this.planes.drawScene();
    }

    // A magnified view keeps the crosshair in its middle; its lines stay about one pixel wide.
    center() {
      const zoom = this.planes.scene.pan2Dxyzmm[3];
      const middle = this.planes.frac2mm([0.5, 0.5, 0.5]);
      const mm = this.crosshairMm();
      const pan = zoom > 1 ? mm.map((value, axis) => middle[axis] - value * zoom) : [0, 0, 0];
      this.planes.scene.pan2Dxyzmm = [...pan, zoom];
      this.planes.opts.crosshairWidth = (stage.dataset.layout === "four" ? 1 : 0.5) / zoom;
    }

    zoom(direction) {
      const now = this.planes.scene.pan2Dxyzmm[3];
      const next = direction === "fit" ? 1 : Math.min(8, Math.max(1, direction === "in" ? now * 1.4 : now / 1.4));
      this.planes.scene.pan2Dxyzmm = [0, 0, 0, next < 1.05 ? 1 : next];
      this.center();
      this.planes.drawScene();
    }

    setWindow(low, high) {
      const ct = this.planes.volumes[0];
      ct.cal_min = low;
      ct.cal_max = high;
      this.planes.updateGLVolume();
      this.tellWindow();
    }

    tellWindow() {
      const ct = this.planes.volumes[0];
      for (const listener of listeners.window) listener({ low: ct.cal_min, high: ct.cal_max });
    }

    setOverlay(opacity) {
      if (opacity === this.opacity) return;
      this.opacity = opacity;
      this.recolor();
    }

    setOutline(on) {
      this.outline = on;
      this.recolor();
    }

    setShown(labels) {
      const next = new Set(labels);
      if (next.size === this.shown.size && labels.every((label) => this.shown.has(label))) return;
      this.shown = next;
      this.recolor();
    }

    setLayout(name) {
      stage.dataset.layout = name;
      if (name === "four") {
        this.planes.setCustomLayout(QUARTERS);
      } else if (name in SLICE) {
        this.planes.clearCustomLayout();
        this.planes.setSliceType(SLICE[name]);
      }
      this.center();
      this.planes.drawScene();
    }

    tileAt(clientX, clientY) {
      const canvas = byId("planes");
      const frame = canvas.getBoundingClientRect();
      const scale = canvas.width / frame.width;
      const x = (clientX - frame.left) * scale;
      const y = (clientY - frame.top) * scale;
      const tile = this.planes.screenSlices.find(({ leftTopWidthHeight: [left, top, width, height] }) => x >= left && y >= top && x <= left + width && y <= top + height);
      return tile ? Object.keys(SLICE)[tile.axCorSag] : null;
    }

    drawBoxes() {
      const svg = byId("boxes");
      const canvas = byId("planes");
      svg.setAttribute("viewBox", `0 0 ${canvas.width} ${canvas.height}`);
      svg.setAttribute("preserveAspectRatio", "none");
      svg.replaceChildren();
      if (!this.box || stage.dataset.layout === "solid") return;
      const at = this.crosshairMm();
      const margin = page.spacing_mm / 2;
      for (const tile of this.planes.screenSlices) {
        if (!(tile.axCorSag in IN_PLANE)) continue;
        const depth = 2 - tile.axCorSag;
        if (at[depth] < this.box[0][depth] - margin || at[depth] > this.box[1][depth] + margin) continue;
        const [left, top, width, height] = tile.leftTopWidthHeight;
        const [across, up] = IN_PLANE[tile.axCorSag];
        const toX = (mm) => left + ((mm - tile.leftTopMM[0]) / tile.fovMM[0]) * width;
        const toY = (mm) => top + height - ((mm - tile.leftTopMM[1]) / tile.fovMM[1]) * height;
        const clip = (value, low, high) => Math.min(high, Math.max(low, value));
        const xs = [toX(this.box[0][across] - margin), toX(this.box[1][across] + margin)].map((x) => clip(x, left + 1, left + width - 1));
        const ys = [toY(this.box[0][up] - margin), toY(this.box[1][up] + margin)].map((y) => clip(y, top + 1, top + height - 1));
        const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        rect.setAttribute("x", Math.min(...xs));
        rect.setAttribute("y", Math.min(...ys));
        rect.setAttribute("width", Math.abs(xs[1] - xs[0]));
        rect.setAttribute("height", Math.abs(ys[1] - ys[0]));
        svg.append(rect);
      }
    }
  }

  window.velvetmed.Viewer = Viewer;
  window.velvetmed.start = async () => {
    const viewer = new Viewer();
    try {
      await breathe();
      await viewer.start();
      window.velvetmed.viewer = viewer;
      root.dataset.state = "ready";
      viewer.tellWindow();
    } catch (problem) {
      stills(`The viewer could not start (${problem.message}).`);
    }
  };
})();
