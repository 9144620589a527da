// Draws the report's figures as SVG from the JSON beside them: hover, zoom, pan, toggled series, light and dark.
'use strict';
(() => {
  const NS = 'http://www.w3.org/2000/svg';
  const data = JSON.parse(document.getElementById('data').textContent);
  const root = document.documentElement;
  const tip = document.getElementById('tip');
  const DASH = {solid: '', dash: '6 3', dot: '1.5 2.5', dashdot: '6 2.5 1.5 2.5', longdash: '11 3'};
  const views = [];
  let theme = 'light';

  // --- numbers, as analysis/figures/ticks.py writes them
  const SUPER = {'-': '⁻', 0: '⁰', 1: '¹', 2: '²', 3: '³', 4: '⁴', 5: '⁵', 6: '⁶', 7: '⁷', 8: '⁸', 9: '⁹'};
  function power(v, digits) {
    const [m, e] = v.toExponential(digits - 1).split('e');
    const mantissa = m.includes('.') ? m.replace(/0+$/, '').replace(/\.$/, '') : m;
    const ten = '10' + String(Number(e)).split('').map(c => SUPER[c]).join('');
    return (mantissa === '1' ? ten : mantissa + '×' + ten).replace(/-/g, '−');
  }
  function short(v, digits) {
    return v !== 0 && Math.abs(v) < 1e-4 ? power(v, digits) : String(Number(v.toPrecision(digits))).replace(/-/g, '−');
  }
  function text(v, unit, digits = 3) {
    if (v === null || !Number.isFinite(v)) return '–';
    if (unit === 'percent') return (Math.abs(v) < 1e4 ? short(100 * v, digits) : power(100 * v, digits)) + '%';
    if (v === 0) return '0';
    const a = Math.abs(v);
    if (unit === 'count') {
      for (const [s, suffix] of [[1e12, 'T'], [1e9, 'B'], [1e6, 'M'], [1e3, 'k']])
        if (a >= s * 0.9995) return a < 1e16 ? short(v / s, digits) + suffix : power(v, digits);
      return short(v, digits);
    }
    if (unit === 'flops' || a < 1e-4 || a >= 1e6) return power(v, digits);
    return short(v, digits);
  }
  function linearTicks(lo, hi, n) {
    const span = hi - lo;
    if (!(span > 0)) return [lo];
    const raw = span / n, p = 10 ** Math.floor(Math.log10(raw));
    const steps = [0.2, 0.5, 1, 2, 2.5, 5, 10].map(m => m * p);
    for (let at = steps.findIndex(s => s >= raw * (1 - 1e-9)); ; at--) {
      const step = steps[at], first = Math.ceil(lo / step - 1e-9), last = Math.floor(hi / step + 1e-9);
      if (last <= first && at > 0) continue;
      const out = [];
      for (let i = first; i <= last; i++) out.push(Number((i * step).toPrecision(12)));
      return out;
    }
  }
  function logTicks(lo, hi, n) {
    const decades = Math.log10(hi / lo);
    if (decades < 0.75) return linearTicks(lo, hi, n).filter(t => t > 0);
    const mantissas = decades * 3 <= n + 2 ? [1, 2, 5] : decades * 2 <= n + 1 ? [1, 3] : [1];
    const every = mantissas.length === 1 ? Math.max(1, Math.ceil(decades / n)) : 1;
    const out = [];
    for (let e = Math.floor(Math.log10(lo)) - 1; e <= Math.ceil(Math.log10(hi)); e++)
      for (const m of mantissas) {
        const t = Number(`${m}e${e}`);
        if (e % every === 0 && t >= lo * (1 - 1e-9) && t <= hi * (1 + 1e-9)) out.push(t);
      }
    return out;
  }

  // --- colours
  function shade(c) {
    if (typeof c === 'string') return data.colors[theme][c] || c;
    const stops = data.ramp[theme], x = Math.min(Math.max(c, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(x), stops.length - 2);
    const mix = k => Math.round(parseInt(stops[i].slice(k, k + 2), 16) * (1 - x + i) + parseInt(stops[i + 1].slice(k, k + 2), 16) * (x - i));
    return `rgb(${mix(1)},${mix(3)},${mix(5)})`;
  }
  function el(name, attributes, parent, words) {
    const node = document.createElementNS(NS, name);
    for (const k in attributes) node.setAttribute(k, attributes[k]);
    if (words !== undefined) node.textContent = words;
    if (parent) parent.appendChild(node);
    return node;
  }
  function marker(kind, x, y, r) {
    const p = (...d) => 'M' + d.map(([a, b]) => `${(x + a * r).toFixed(2)} ${(y + b * r).toFixed(2)}`).join('L') + 'Z';
    if (kind === 'square') return p([-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]);
    if (kind === 'triangle') return p([0, -1.15], [1.1, 0.85], [-1.1, 0.85]);
    if (kind === 'down') return p([0, 1.15], [1.1, -0.85], [-1.1, -0.85]);
    if (kind === 'diamond') return p([0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]);
    const plus = [[-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]];
    if (kind === 'plus') return p(...plus);
    if (kind === 'cross') return p(...plus.map(([a, b]) => [(a - b) * 0.707, (a + b) * 0.707]));
    if (kind === 'star') return p(...[...Array(10).keys()].map(i => [Math.sin(i * Math.PI / 5) * (i % 2 ? 0.6 : 1.45), -Math.cos(i * Math.PI / 5) * (i % 2 ? 0.6 : 1.45)]));
    return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
  }

  // --- one panel
  class View {
    constructor(panel, holder, size, hidden, id) {
      Object.assign(this, {panel, holder, hidden, id});
      [this.w, this.h] = size;
      this.margin = {left: 58, right: panel.ramp ? 78 : 14, top: panel.title ? 26 : 12, bottom: panel.x.scale === 'category' ? 66 : 44};
      this.svg = el('svg', {viewBox: `0 0 ${this.w} ${this.h}`, tabindex: 0, role: 'img', 'aria-label': `${panel.title || ''} ${panel.y.label} against ${panel.x.label}`}, holder);
      this.reset();
      this.listen();
    }
    reset() {
      this.domain = {};
      for (const a of ['x', 'y']) this.domain[a] = this.panel[a].limits.map(v => this.forward(a, v));
      this.draw();
    }
    forward(a, v) { return this.panel[a].scale === 'log' ? Math.log10(v) : v; }
    back(a, u) { return this.panel[a].scale === 'log' ? 10 ** u : u; }
    box() { const m = this.margin; return {x: m.left, y: m.top, w: this.w - m.left - m.right, h: this.h - m.top - m.bottom}; }
    px(v) { const b = this.box(), [lo, hi] = this.domain.x; return b.x + (this.forward('x', v) - lo) / (hi - lo) * b.w; }
    py(v) { const b = this.box(), [lo, hi] = this.domain.y; return b.y + b.h - (this.forward('y', v) - lo) / (hi - lo) * b.h; }

    draw() {
      this.margin.left = this.room();
      const {svg, panel} = this, b = this.box(), ink = shade('ink'), soft = shade('grid'), words = shade('words');
      svg.replaceChildren();
      svg.setAttribute('font-family', 'system-ui, "DejaVu Sans", sans-serif');
      const clip = el('clipPath', {id: this.id}, el('defs', {}, svg));
      el('rect', {x: b.x, y: b.y, width: b.w, height: b.h}, clip);
      el('rect', {x: 0, y: 0, width: this.w, height: this.h, fill: shade('page')}, svg);
      this.axis('x', b, soft, words);
      this.axis('y', b, soft, words);
      el('path', {d: `M${b.x} ${b.y}V${b.y + b.h}H${b.x + b.w}`, fill: 'none', stroke: words, 'stroke-width': 0.8}, svg);
      if (panel.title) el('text', {x: b.x + b.w / 2, y: 16, 'text-anchor': 'middle', 'font-size': 12, fill: ink, 'font-weight': 600}, svg, panel.title);
      const layer = el('g', {'clip-path': `url(#${this.id})`}, svg);
      this.targets = [];
      for (const mark of panel.marks) if (!(mark.label && this.hidden.has(mark.label))) this.mark(layer, mark, b);
      this.ring = el('circle', {r: 7, fill: 'none', stroke: ink, 'stroke-width': 1.5, visibility: 'hidden'}, layer);
      if (panel.note) this.note(b, words);
      if (panel.ramp) this.bar(b, words);
    }
    ticks(a, b) {
      const spec = this.panel[a], [lo, hi] = this.domain[a].map(u => this.back(a, u)), n = Math.max(3, Math.round(a === 'x' ? b.w / 62 : b.h / 38));
      if (spec.scale === 'category') return spec.categories.map((c, i) => [i, c]).filter(([i]) => i >= lo && i <= hi);
      return (spec.scale === 'log' ? logTicks : linearTicks)(lo, hi, n).map(t => [t, spec.bare ? '' : text(t, spec.unit)]);
    }
    room() { return 30 + 6.1 * Math.max(2, ...this.ticks('y', this.box()).map(([, label]) => label.length)); }
    axis(a, b, soft, words) {
      const spec = this.panel[a], category = spec.scale === 'category';
      for (const [t, label] of this.ticks(a, b)) {
        const at = a === 'x' ? this.px(t) : this.py(t);
        if (!category) el('path', {d: a === 'x' ? `M${at} ${b.y}v${b.h}` : `M${b.x} ${at}h${b.w}`, stroke: soft, 'stroke-width': 0.7}, this.svg);
        const where = a === 'x' ? {x: at, y: b.y + b.h + 15, 'text-anchor': 'middle'} : {x: b.x - 6, y: at + 3.5, 'text-anchor': 'end'};
        if (a === 'x' && category && spec.categories.join('').length > 45) Object.assign(where, {'text-anchor': 'end', transform: `rotate(-35 ${at} ${b.y + b.h + 12})`});
        el('text', {...where, 'font-size': 10.5, fill: words}, this.svg, label);
      }
      const at = a === 'x' ? {x: b.x + b.w / 2, y: this.h - 6} : {transform: `translate(13 ${b.y + b.h / 2}) rotate(-90)`};
      el('text', {...at, 'text-anchor': 'middle', 'font-size': 11.5, fill: shade('ink')}, this.svg, spec.label);
    }
    mark(layer, m, b) {
      const color = shade(m.color), X = m.x.map(v => this.px(v)), Y = m.y.map(v => this.py(v)), fine = i => Number.isFinite(X[i]) && Number.isFinite(Y[i]) && m.x[i] !== null && m.y[i] !== null;
      const track = (i, dx = 0) => { if (m.hover && fine(i)) this.targets.push({x: X[i] + dx, y: Y[i], words: m.hover[i], label: m.label}); };
      if (m.kind === 'line') {
        let d = '', pen = false;
        X.forEach((x, i) => { if (!fine(i)) { pen = false; return; } d += `${pen ? 'L' : 'M'}${x.toFixed(2)} ${Y[i].toFixed(2)}`; pen = true; track(i); });
        el('path', {d, fill: 'none', stroke: color, 'stroke-width': m.width * 1.25, 'stroke-dasharray': DASH[m.dash], opacity: m.alpha, 'stroke-linejoin': 'round'}, layer);
      } else if (m.kind === 'rule') {
        const d = m.x.length ? `M${X[0]} ${b.y}v${b.h}` : `M${b.x} ${Y[0]}h${b.w}`;
        el('path', {d, stroke: color, 'stroke-width': m.width * 1.15, 'stroke-dasharray': DASH[m.dash], opacity: m.alpha}, layer);
        if (m.hover) for (let k = 0; k <= 24; k++) this.targets.push({x: m.x.length ? X[0] : b.x + b.w * k / 24, y: m.x.length ? b.y + b.h * k / 24 : Y[0], words: m.hover[0], label: '', weak: true});
      } else if (m.kind === 'band') {
        const ok = X.map((_, i) => i).filter(i => fine(i) && m.high[i] !== null);
        if (ok.length > 1) el('path', {d: 'M' + ok.map(i => `${X[i]} ${Y[i]}`).join('L') + 'L' + ok.reverse().map(i => `${X[i]} ${this.py(m.high[i])}`).join('L') + 'Z', fill: color, opacity: 0.2 * m.alpha}, layer);
      } else if (m.kind === 'bars' || m.kind === 'cells') {
        const half = Math.abs(this.px(m.kind === 'bars' ? 0.31 : 0.5) - this.px(0));
        X.forEach((x, i) => {
          if (!fine(i)) return;
          if (m.kind === 'bars') {
            const zero = this.panel.y.scale === 'log' ? b.y + b.h : this.py(m.base ? m.base[i] : 0);
            el('rect', {x: x - half, width: 2 * half, y: Math.min(zero, Y[i]), height: Math.abs(zero - Y[i]), fill: color, opacity: m.alpha}, layer);
          } else if (m.values[i] !== null) {
            const tall = Math.abs(this.py(0.5) - this.py(0));
            el('rect', {x: x - half, y: Y[i] - tall, width: 2 * half, height: 2 * tall, fill: shade(m.values[i]), stroke: shade('page'), 'stroke-width': 1}, layer);
          }
          track(i);
        });
      } else if (m.kind === 'text') {
        X.forEach((x, i) => { if (fine(i)) el('text', {x, y: Y[i] + 3.5, 'text-anchor': m.anchor, 'font-size': m.size * 2.1, fill: color}, layer, m.hover[i]); });
      } else {
        X.forEach((x, i) => {
          if (!fine(i)) return;
          const fill = m.values && m.values[i] !== null ? shade(m.values[i]) : color;
          if (m.low && m.high && m.low[i] !== null && m.high[i] !== null) {
            const [l, h] = [this.py(m.low[i]), this.py(m.high[i])];
            el('path', {d: `M${x} ${l}V${h}M${x - 3} ${l}h6M${x - 3} ${h}h6`, stroke: fill, 'stroke-width': 1.1, opacity: m.alpha}, layer);
          }
          el('path', {d: marker(m.marker, x, Y[i], m.size * 0.82), fill: m.filled ? fill : shade('page'), stroke: m.filled ? shade('page') : fill, 'stroke-width': m.filled ? (m.size > 2.5 ? 0.6 : 0) : 1.5, opacity: m.alpha}, layer);
          track(i);
        });
      }
    }
    note(b, words) {
      const lines = this.panel.note.split('\n'), right = this.panel.note_at.includes('right'), top = this.panel.note_at.includes('upper');
      const x = right ? b.x + b.w - 6 : b.x + 8, y = top ? b.y + 14 : b.y + b.h - 8 - 14 * (lines.length - 1);
      lines.forEach((line, i) => el('text', {x, y: y + 14 * i, 'text-anchor': right ? 'end' : 'start', 'font-size': 10.5, fill: words, stroke: shade('page'), 'stroke-width': 3, 'paint-order': 'stroke'}, this.svg, line));
    }
    bar(b, words) {
      const [label, lo, hi, log, unit] = this.panel.ramp, x = b.x + b.w + 12, n = 48, f = v => log ? Math.log(v) : v;
      for (let i = 0; i < n; i++) el('rect', {x, y: b.y + b.h * (1 - (i + 1) / n), width: 11, height: b.h / n + 0.6, fill: shade((i + 0.5) / n)}, this.svg);
      if (hi > lo) for (const t of (log ? logTicks : linearTicks)(lo, hi, 5)) el('text', {x: x + 14, y: b.y + b.h * (1 - (f(t) - f(lo)) / (f(hi) - f(lo))) + 3.5, 'font-size': 9.5, fill: words}, this.svg, text(t, unit));
      el('text', {transform: `translate(${this.w - 4} ${b.y + b.h / 2}) rotate(-90)`, 'text-anchor': 'middle', 'font-size': 10.5, fill: shade('ink')}, this.svg, label);
    }

    // --- pointer and keys
    place(event) {
      const r = this.svg.getBoundingClientRect();
      return [(event.clientX - r.left) * this.w / r.width, (event.clientY - r.top) * this.h / r.height];
    }
    zoom(factor, x, y) {
      const b = this.box();
      [['x', (x - b.x) / b.w], ['y', 1 - (y - b.y) / b.h]].forEach(([a, at]) => {
        const [lo, hi] = this.domain[a], c = lo + (hi - lo) * at;
        this.domain[a] = [c - (c - lo) * factor, c + (hi - c) * factor];
      });
      this.draw();
    }
    pan(dx, dy) {
      const b = this.box(), {x, y} = this.domain, u = dx / b.w * (x[1] - x[0]), v = dy / b.h * (y[1] - y[0]);
      this.domain = {x: [x[0] - u, x[1] - u], y: [y[0] + v, y[1] + v]};
      this.draw();
    }
    show(event) {
      const [x, y] = this.place(event), b = this.box();
      let best = null, least = 34 ** 2;
      if (x >= b.x - 6 && x <= b.x + b.w + 6) for (const t of this.targets) {
        const d = (t.x - x) ** 2 + (t.y - y) ** 2 + (t.weak ? 150 : 0);
        if (d < least && t.x >= b.x - 1 && t.x <= b.x + b.w + 1 && t.y >= b.y - 1 && t.y <= b.y + b.h + 1) [best, least] = [t, d];
      }
      if (!best) return this.hide();
      this.ring.setAttribute('cx', best.x);
      this.ring.setAttribute('cy', best.y);
      this.ring.setAttribute('visibility', best.weak ? 'hidden' : 'visible');
      const [head, ...rest] = best.words.split('\n');
      tip.replaceChildren(Object.assign(document.createElement('b'), {textContent: head}), ...rest.map(t => Object.assign(document.createElement('div'), {textContent: t})));
      tip.hidden = false;
      const r = tip.getBoundingClientRect();
      tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - r.width - 8)) + scrollX + 'px';
      tip.style.top = (event.clientY + 16 + r.height > innerHeight ? event.clientY - r.height - 12 : event.clientY + 16) + scrollY + 'px';
    }
    hide() { tip.hidden = true; if (this.ring) this.ring.setAttribute('visibility', 'hidden'); }
    listen() {
      let from = null;
      this.svg.addEventListener('pointerdown', e => { from = this.place(e); this.svg.focus({preventScroll: true}); });
      this.svg.addEventListener('pointermove', e => {
        if (from && e.buttons & 1 && e.pointerType !== 'touch') {
          const at = this.place(e);
          this.hide();
          this.pan(at[0] - from[0], at[1] - from[1]);
          from = at;
        } else this.show(e);
      });
      this.svg.addEventListener('pointerup', () => { from = null; });
      this.svg.addEventListener('pointerleave', () => { from = null; this.hide(); });
      this.svg.addEventListener('dblclick', () => this.reset());
      // the wheel scrolls the page until the figure was clicked
      this.svg.addEventListener('wheel', e => {
        if (document.activeElement !== this.svg && !e.ctrlKey) return;
        e.preventDefault();
        this.hide();
        this.zoom(e.deltaY > 0 ? 1.18 : 1 / 1.18, ...this.place(e));
      }, {passive: false});
      this.svg.addEventListener('keydown', e => {
        const b = this.box(), centre = [b.x + b.w / 2, b.y + b.h / 2];
        const act = {'+': () => this.zoom(1 / 1.25, ...centre), '=': () => this.zoom(1 / 1.25, ...centre), '-': () => this.zoom(1.25, ...centre), 0: () => this.reset(), ArrowLeft: () => this.pan(30, 0), ArrowRight: () => this.pan(-30, 0), ArrowUp: () => this.pan(0, 30), ArrowDown: () => this.pan(0, -30)}[e.key];
        if (act) { e.preventDefault(); act(); }
      });
    }
  }

  // --- figures
  function swatch(mark) {
    const svg = el('svg', {width: 26, height: 12, viewBox: '0 0 26 12', 'aria-hidden': 'true'}), c = shade(mark.values ? 0.4 : mark.color);
    if (mark.kind === 'points') el('path', {d: marker(mark.marker, 13, 6, 4), fill: mark.filled ? c : 'none', stroke: c, 'stroke-width': 1.3}, svg);
    else if (mark.kind === 'band' || mark.kind === 'bars') el('rect', {x: 3, y: 2, width: 20, height: 8, fill: c, opacity: mark.kind === 'band' ? 0.3 : 1}, svg);
    else el('path', {d: 'M1 6h24', stroke: c, 'stroke-width': 2, 'stroke-dasharray': DASH[mark.dash]}, svg);
    return svg;
  }
  function legend(holder, panels, hidden, own, heading) {
    const seen = new Map();
    for (const p of panels) for (const m of p.marks) if (m.label && !seen.has(m.label)) seen.set(m.label, m);
    if (!seen.size) return;
    const box = holder.appendChild(document.createElement('div'));
    box.className = 'legend';
    if (heading) box.append(heading + ':');
    for (const [label, mark] of seen) {
      const button = box.appendChild(document.createElement('button'));
      button.type = 'button';
      button.title = 'show or hide';
      button.setAttribute('aria-pressed', !hidden.has(label));
      button.append(swatch(mark), label);
      button.addEventListener('click', () => {
        hidden.has(label) ? hidden.delete(label) : hidden.add(label);
        button.setAttribute('aria-pressed', !hidden.has(label));
        own.forEach(v => v.draw());
      });
    }
  }
  function figure(name, plot) {
    const holder = document.querySelector(`[data-figure="${name}"]`);
    const grid = holder.querySelector('.panels'), columns = plot.columns, hidden = new Set(), own = [];
    const width = {1: 560, 2: 430, 3: 360}[columns] || 320, ratio = plot.panel_size[0] ? plot.panel_size[1] / plot.panel_size[0] : {1: 0.66, 2: 0.72}[columns] || 0.82;
    grid.style.setProperty('--columns', columns);
    const shared = [];
    plot.panels.forEach((panel, i) => {
      const cell = grid.appendChild(document.createElement('div'));
      cell.className = 'panel';
      if (panel.blank) return;
      const mine = panel.legend ? new Set() : hidden;
      const view = new View(panel, cell, [width, Math.round(width * ratio)], mine, `clip-${name}-${i}`);
      own.push(view);
      views.push(view);
      if (panel.legend) legend(cell, [panel], mine, [view], panel.legend);
      else shared.push(panel);
    });
    if (plot.legend) legend(holder.querySelector('.below'), shared, hidden, own, '');
    const tools = holder.querySelector('.tools');
    const tool = (words, title, act) => {
      const button = tools.appendChild(document.createElement('button'));
      Object.assign(button, {type: 'button', textContent: words, title});
      button.addEventListener('click', act);
    };
    tool('reset', 'back to the whole figure (double click does it for one panel)', () => own.forEach(v => v.reset()));
    tool('SVG', 'save what is shown', () => own.forEach((v, i) => save(`${name}${own.length > 1 ? '-' + (i + 1) : ''}.svg`, new XMLSerializer().serializeToString(v.svg), 'image/svg+xml')));
  }
  function save(name, words, type) {
    const link = Object.assign(document.createElement('a'), {href: URL.createObjectURL(new Blob([words], {type})), download: name});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // --- tables
  document.querySelectorAll('table[data-table]').forEach(table => {
    const body = table.tBodies[0], original = [...body.rows];
    table.querySelectorAll('th').forEach((th, i) => {
      th.addEventListener('click', () => {
        const way = th.dataset.way === 'up' ? 'down' : th.dataset.way === 'down' ? '' : 'up';
        table.querySelectorAll('th').forEach(o => { o.dataset.way = ''; });
        th.dataset.way = way;
        const key = r => r.cells[i].dataset.v === undefined ? r.cells[i].textContent : Number(r.cells[i].dataset.v);
        const rows = way ? [...original].sort((p, q) => (key(p) > key(q) ? 1 : key(p) < key(q) ? -1 : 0) * (way === 'up' ? 1 : -1)) : original;
        body.append(...rows);
      });
    });
  });
  document.querySelectorAll('button[data-save]').forEach(b => b.addEventListener('click', () => {
    const [name, kind] = b.dataset.save.split('.');
    save(b.dataset.save, data.tables[name][kind], 'text/plain');
  }));

  // --- theme
  const dark = matchMedia('(prefers-color-scheme: dark)');
  let chosen = '';
  function apply(printing) {
    theme = printing ? 'light' : chosen || (dark.matches ? 'dark' : 'light');
    root.dataset.theme = theme;
    views.forEach(v => v.draw());
    document.querySelectorAll('.legend svg').forEach(s => s.remove());
    document.querySelectorAll('.legend button').forEach(b => {
      const plot = data.plots[b.closest('[data-figure]').dataset.figure];
      for (const p of plot.panels) for (const m of p.marks || []) if (m.label === b.textContent) { b.prepend(swatch(m)); return; }
    });
  }
  dark.addEventListener('change', () => apply(false));
  document.getElementById('theme').addEventListener('click', () => { chosen = theme === 'dark' ? 'light' : 'dark'; apply(false); });
  addEventListener('beforeprint', () => apply(true));
  addEventListener('afterprint', () => apply(false));

  for (const name in data.plots) figure(name, data.plots[name]);
  apply(false);
  root.dataset.ready = 'yes';
})();
