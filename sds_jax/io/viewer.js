// Rotates a vertex-coloured mesh with WebGL 2, or without WebGL by a software rasteriser on a 2D canvas.
// World: z up; azimuth 0 is a camera on +x towards the front; azimuth grows counter-clockwise seen from above.
// State is at window.sdsViewer: azimuth, elevation, zoom, frames (drawn so far), renderer, touched.
"use strict";
(() => {
  const canvas = document.getElementById("viewer");
  const mesh = decode(JSON.parse(document.getElementById("report-data").textContent).mesh);
  if (!canvas || !mesh) return;
  const FOV = Math.PI / 6, SPIN = 0.4;  // radians; radians a second
  const START = {azimuth: 0.55, elevation: 0.3, zoom: 1};
  const view = {...START, frames: 0, renderer: "", touched: matchMedia("(prefers-reduced-motion: reduce)").matches};
  window.sdsViewer = view;

  const VERTEX = `#version 300 es
    in vec3 position, normal, colour;
    uniform vec3 low, size, centre;
    uniform mat3 rotation;                     // rows: right, up, backward
    uniform vec4 lens;                         // scale x, scale y, distance, radius of the object
    out vec3 n, albedo;
    void main() {
      vec3 p = rotation * (low + size * position - centre);
      float depth = lens.z - p.z, near = 0.1 * lens.w, far = lens.z + 2.0 * lens.w;
      gl_Position = vec4(lens.xy * p.xy, ((far + near) * depth - 2.0 * far * near) / (far - near), depth);
      n = rotation * normal;
      albedo = colour;
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 n, albedo;
    out vec4 pixel;
    void main() {
      vec3 u = normalize(n);
      float light = 0.5 + 0.12 * u.y + 0.5 * max(0.0, dot(u, vec3(-0.35, 0.5, 0.79)));
      pixel = vec4(min(albedo * light, 1.0), 1.0);
    }`;
  const draw = webgl(canvas, mesh) || software(canvas, mesh);
  if (view.renderer === "canvas2d" && mesh.faces.length > 600000) view.touched = true;  // too slow for automatic rotation
  let dirty = true, last = 0;

  new ResizeObserver(() => {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    dirty = true;
  }).observe(canvas);

  requestAnimationFrame(function tick(now) {
    if (!view.touched) view.azimuth += SPIN * Math.min(now - last, 100) / 1000;
    if (dirty || !view.touched) {
      draw(frameOf(mesh, view, canvas.width / canvas.height));
      view.frames += 1;
      dirty = false;
    }
    last = now;
    requestAnimationFrame(tick);
  });

  function turn(azimuth, elevation) {
    view.azimuth += azimuth;
    view.elevation = Math.max(-1.5, Math.min(1.5, view.elevation + elevation));
    view.touched = dirty = true;
  }
  function zoom(factor) {
    view.zoom = Math.max(0.4, Math.min(8, view.zoom * factor));
    view.touched = dirty = true;
  }
  canvas.addEventListener("pointerdown", e => { canvas.setPointerCapture(e.pointerId); view.touched = true; });
  canvas.addEventListener("pointermove", e => {
    if (e.buttons & 1) turn(-e.movementX * 0.01, e.movementY * 0.01);
  });
  canvas.addEventListener("wheel", e => { e.preventDefault(); zoom(Math.exp(-e.deltaY * 0.001)); }, {passive: false});
  canvas.addEventListener("dblclick", () => { Object.assign(view, START); dirty = true; });
  canvas.addEventListener("keydown", e => {
    const step = {ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1]}[e.key];
    if (step) { e.preventDefault(); turn(...step); }
    if (e.key === "+" || e.key === "=") zoom(1.1);
    if (e.key === "-") zoom(1 / 1.1);
  });

  // Decodes base64 of little-endian arrays to typed arrays; positions are 16-bit fractions of the box [low, high].
  function decode(packed) {
    if (!packed) return null;
    const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
    const {low, high, radius} = packed;
    return {
      low, high, radius, centre: low.map((l, i) => 0.5 * (l + high[i])),
      positions: new Uint16Array(bytes(packed.positions).buffer), normals: new Int8Array(bytes(packed.normals).buffer),
      colours: bytes(packed.colours), faces: new Uint32Array(bytes(packed.faces).buffer),
    };
  }

  // The camera's axes (right, up, backward), its distance, and the scales of x and y on the screen.
  function frameOf(mesh, view, aspect) {
    const [ca, sa, ce, se] = [Math.cos(view.azimuth), Math.sin(view.azimuth), Math.cos(view.elevation), Math.sin(view.elevation)];
    const focal = view.zoom / Math.tan(FOV / 2);
    return {
      right: [-sa, ca, 0], up: [-se * ca, -se * sa, ce], backward: [ce * ca, ce * sa, se],
      distance: 1.1 * mesh.radius / Math.sin(FOV / 2), scale: [focal / Math.max(aspect, 1), focal * Math.min(aspect, 1)],
    };
  }

  function webgl(canvas, mesh) {
    const gl = canvas.getContext("webgl2", {antialias: true, alpha: true, preserveDrawingBuffer: true});
    if (!gl) return null;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    ["position", "normal", "colour"].forEach((name, slot) => gl.bindAttribLocation(program, slot, name));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    [[mesh.positions, gl.UNSIGNED_SHORT], [mesh.normals, gl.BYTE], [mesh.colours, gl.UNSIGNED_BYTE]].forEach(([data, type], slot) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(slot);
      gl.vertexAttribPointer(slot, 3, type, true, 0, 0);
    });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.faces, gl.STATIC_DRAW);
    gl.enable(gl.DEPTH_TEST);
    const at = name => gl.getUniformLocation(program, name);
    const uniform = Object.fromEntries(["low", "size", "centre", "rotation", "lens"].map(name => [name, at(name)]));
    gl.uniform3fv(uniform.low, mesh.low);
    gl.uniform3fv(uniform.size, mesh.high.map((h, i) => h - mesh.low[i]));
    gl.uniform3fv(uniform.centre, mesh.centre);
    view.renderer = "webgl2";
    return frame => {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.uniformMatrix3fv(uniform.rotation, true, [...frame.right, ...frame.up, ...frame.backward]);
      gl.uniform4f(uniform.lens, ...frame.scale, frame.distance, mesh.radius);
      gl.drawElements(gl.TRIANGLES, mesh.faces.length, gl.UNSIGNED_INT, 0);
    };
  }

  // A rasteriser in plain JavaScript with a depth buffer, flat triangles and a single lamp.
  function software(canvas, mesh) {
    const context = canvas.getContext("2d");
    const count = mesh.positions.length / 3, faces = mesh.faces;
    const [x, y, nearness] = [0, 1, 2].map(() => new Float32Array(count)), colour = new Uint32Array(count);
    const size = mesh.high.map((h, i) => (h - mesh.low[i]) / 65535);
    const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    view.renderer = "canvas2d";
    return frame => {
      const {width, height} = canvas;
      const image = context.createImageData(width, height), pixels = new Uint32Array(image.data.buffer);
      const nearest = new Float32Array(width * height);
      for (let i = 0; i < count; i++) {
        const p = [0, 1, 2].map(c => mesh.low[c] + size[c] * mesh.positions[3 * i + c] - mesh.centre[c]);
        const n = [0, 1, 2].map(c => mesh.normals[3 * i + c] / 127);
        nearness[i] = 1 / (frame.distance - dot(frame.backward, p));
        x[i] = (0.5 + 0.5 * frame.scale[0] * dot(frame.right, p) * nearness[i]) * width;
        y[i] = (0.5 - 0.5 * frame.scale[1] * dot(frame.up, p) * nearness[i]) * height;
        const shade = light(dot(frame.right, n), dot(frame.up, n), dot(frame.backward, n));
        const [r, g, b] = [0, 1, 2].map(c => Math.min(255, Math.round(mesh.colours[3 * i + c] * shade)));
        colour[i] = 0xff000000 | b << 16 | g << 8 | r;
      }
      for (let t = 0; t < faces.length; t += 3) {
        const a = faces[t], b = faces[t + 1], c = faces[t + 2];
        const area = (x[b] - x[a]) * (y[c] - y[a]) - (x[c] - x[a]) * (y[b] - y[a]);
        if (area >= 0) continue;  // back face (y points down)
        const left = Math.max(0, Math.ceil(Math.min(x[a], x[b], x[c]) - 0.5));
        const right = Math.min(width - 1, Math.floor(Math.max(x[a], x[b], x[c]) - 0.5));
        const top = Math.max(0, Math.ceil(Math.min(y[a], y[b], y[c]) - 0.5));
        const bottom = Math.min(height - 1, Math.floor(Math.max(y[a], y[b], y[c]) - 0.5));
        for (let v = top; v <= bottom; v++) for (let u = left; u <= right; u++) {
          const px = u + 0.5, py = v + 0.5;
          const wb = ((px - x[a]) * (y[c] - y[a]) - (x[c] - x[a]) * (py - y[a])) / area;
          const wc = ((x[b] - x[a]) * (py - y[a]) - (px - x[a]) * (y[b] - y[a])) / area;
          if (wb < 0 || wc < 0 || wb + wc > 1) continue;
          const near = nearness[a] + wb * (nearness[b] - nearness[a]) + wc * (nearness[c] - nearness[a]);
          if (near > nearest[v * width + u]) { nearest[v * width + u] = near; pixels[v * width + u] = colour[a]; }
        }
      }
      context.putImageData(image, 0, 0);
    };
  }

  // The light of the fragment shader: a lamp over the viewer's left shoulder and soft light from above.
  function light(right, up, backward) {
    return 0.5 + 0.12 * up + 0.5 * Math.max(0, -0.35 * right + 0.5 * up + 0.79 * backward);
  }
})();
