--- Images out: as an OCI layout or a docker archive, which skopeo, podman and docker read.

local bring = require "bough.bring"
local check = require "bough.check"
local core = require "bough.core"
local errors = require "bough.error"
local json = require "bough.json"
local platform = require "bough.platform"
local progress = require "bough.progress"
local reference = require "bough.reference"

local M = {}

local raise, quote = errors.raise, errors.quote
local fs = core.fs

local MOST_HISTORY = 500
local MOST_TRIES = 3

local OCI = "application/vnd.oci.image."
local layer_types = {
  none = OCI .. "layer.v1.tar", gzip = OCI .. "layer.v1.tar+gzip", zstd = OCI .. "layer.v1.tar+zstd",
}

local export_keys = { "format", "layers", "compress", "tag", "name", "sparse", "on_progress" }

local function choice(value, name, known, default)
  if value == nil then return default end
  for _, one in ipairs(known) do
    if value == one then return value end
  end
  raise("invalid", "export", "%s must be one of %s, got %s", name, table.concat(known, ", "), quote(value))
end

-- What others call an image with this name, "debian:latest" for "debian"; nil and why where they cannot.
local function full_name(text)
  local good, ref = pcall(reference.parse, text, "export")
  if not good then return nil, ref end
  if ref.digest then
    return nil, errors.new("invalid", "export", nil, "%s: a name to give cannot hold a digest", quote(text))
  end
  return ref.name
end

local function checked(path, opts, row)
  if type(path) ~= "string" or path == "" or path:find("\0", 1, true) then
    raise("invalid", "export", "expected the path to write, got %s", quote(path))
  end
  opts = errors.check_keys("export", opts, export_keys)
  local is_tar = path:find("%.tar$") ~= nil
  local format = choice(opts.format, "format", { "oci", "docker" }, "oci")
  if opts.tag ~= nil and opts.name ~= nil then
    raise("invalid", "export", "tag and name are the same: use one")
  end
  local name = check.tag(opts.tag or opts.name, "export")
  local full, problem = full_name(name or row.tag or "")
  if name and not full then error(problem, 0) end -- the image's own tag is left out in silence
  return {
    format = format,
    is_tar = is_tar or format == "docker", -- others know docker's form only as a file
    whole = choice(opts.layers, "layers", { "chain", "one" }, "chain") == "one",
    compress = choice(opts.compress, "compress", { "gzip", "zstd", "none" },
      format == "oci" and "gzip" or "none"),
    name = full and (name or row.tag):gsub("^docker://", "") or nil, full_name = full,
    sparse = check.boolean(opts.sparse, "export", "sparse"),
    on_progress = check.foreign(check.callback(opts.on_progress, "export", "on_progress")),
    path = path:gsub("(.)/+$", "%1"),
  }
end

-- Progress of one job after another as that of one whole, of which nobody knows how much it will be.
local function new_teller(opts)
  if not opts.on_progress then return nil end
  local before = 0
  return function(event)
    opts.on_progress {
      op = "export", item = opts.path, done = before + event.done, total = 0, unit = "bytes",
      failed = event.failed, finished = event.failed,
    }
    if event.finished then before = before + event.done end
  end
end

---@class bough.packed
---@field path string
---@field digest string
---@field diff_id string
---@field size integer
---@field media_type string

local function pack(handle, spec, opts, tell)
  spec.compress, spec.sparse = opts.compress, opts.sparse
  local result = progress.follow(handle:pack(spec), tell)
  return {
    path = spec.out, digest = result.digest, diff_id = result.diff_id, size = result.size,
    media_type = layer_types[opts.compress],
  }
end

-- Podman and docker want at least one.
local function empty_layer(directory)
  local content = ("\0"):rep(1024)
  local digest = "sha256:" .. core.sha256(content)
  fs.write(directory .. "/empty", content)
  return {
    path = directory .. "/empty", digest = digest, diff_id = digest, size = #content,
    media_type = layer_types.none,
  }
end

-- The layers, bottom first. Compaction may take one away between the question and the answer.
local function pack_layers(handle, uuid, directory, opts, tell)
  for try = 1, MOST_TRIES do
    local ids = handle:layers(uuid)
    if #ids == 0 then return { empty_layer(directory) } end
    if opts.whole then return { pack(handle, { uuid = uuid, out = directory .. "/whole" }, opts, tell) } end
    local packed = {}
    local good, problem = pcall(function()
      for i = #ids, 1, -1 do
        local out = ("%s/%d.%d"):format(directory, try, i)
        packed[#packed + 1] = pack(handle, { uuid = uuid, layer = ids[i], out = out }, opts, tell)
      end
    end)
    if good then return packed end
    if not errors.is(problem, "busy") or try == MOST_TRIES then error(problem, 0) end
    for _, layer in ipairs(packed) do fs.remove(layer.path) end
  end
end

local function timestamp(seconds) return os.date("!%Y-%m-%dT%H:%M:%SZ", math.floor(seconds or 0)) end

-- The image and what it was made from, oldest first.
local function ancestors(handle, row)
  local rows = { row }
  while rows[1].parent_uuid and #rows < MOST_HISTORY do
    local parent = handle:resolve(rows[1].parent_uuid)
    if not parent then break end
    table.insert(rows, 1, parent)
  end
  return rows
end

-- One entry per layer, which is what readers count. Compaction makes layers fewer than images, and an
-- import makes them more: both happen at the beginning.
local function history(rows, layer_count)
  local all = {}
  for _ = #rows + 1, layer_count do
    all[#all + 1] = { created = timestamp(rows[1].created_at), created_by = rows[1].command or "bough" }
  end
  for i, row in ipairs(rows) do
    all[#all + 1] = {
      created = timestamp(row.created_at), created_by = row.command or row.origin or "bough",
      empty_layer = #rows - i >= layer_count or nil,
    }
  end
  return all
end

local function strings(value)
  local all = {}
  for _, text in ipairs(type(value) == "table" and value or {}) do
    if type(text) == "string" then all[#all + 1] = text end
  end
  return all[1] and all or nil
end

local function text(value) return type(value) == "string" and value or nil end

-- The configuration as others write it.
local function config_text(rows, layers)
  local given
  for i = #rows, 1, -1 do
    given = rows[i].config and json.read(rows[i].config)
    if given then break end
  end
  given = given or {}
  local here = platform.read(given) or platform.here()
  local ports
  for _, port in ipairs(strings(given.exposed_ports) or {}) do
    ports = ports or {}
    ports[port] = {}
  end
  local labels
  for name, value in pairs(type(given.labels) == "table" and given.labels or {}) do
    labels = labels or {}
    labels[name] = text(value)
  end
  local diff_ids = {}
  for i, layer in ipairs(layers) do diff_ids[i] = layer.diff_id end
  return json.write {
    architecture = here.architecture, os = here.os, variant = here.variant,
    created = timestamp(rows[#rows].created_at),
    config = {
      Env = strings(given.env), WorkingDir = text(given.cwd), User = text(given.user),
      Entrypoint = strings(given.entrypoint), Cmd = strings(given.cmd), Labels = labels, ExposedPorts = ports,
    },
    rootfs = { type = "layers", diff_ids = diff_ids },
    history = history(rows, #layers),
  }
end

local function hex_of(digest) return digest:match("^sha256:(.*)$") end

local function write_oci(directory, config, layers, opts)
  local blobs = directory .. "/blobs/sha256/"
  fs.mkdir(directory .. "/blobs", 493)
  fs.mkdir(directory .. "/blobs/sha256", 493)
  local function put(content, media_type)
    local hex = core.sha256(content)
    fs.write(blobs .. hex, content)
    return { mediaType = media_type, digest = "sha256:" .. hex, size = #content }
  end
  local listed = {}
  for i, layer in ipairs(layers) do
    fs.rename(layer.path, blobs .. hex_of(layer.digest))
    listed[i] = { mediaType = layer.media_type, digest = layer.digest, size = layer.size }
  end
  local entry = put(json.write {
    schemaVersion = 2, mediaType = OCI .. "manifest.v1+json", layers = listed,
    config = put(config, OCI .. "config.v1+json"),
  }, OCI .. "manifest.v1+json")
  entry.annotations = opts.name and { ["org.opencontainers.image.ref.name"] = opts.name } or nil
  fs.write(directory .. "/index.json", json.write {
    schemaVersion = 2, mediaType = OCI .. "index.v1+json", manifests = { entry },
  })
  fs.write(directory .. "/oci-layout", json.write { imageLayoutVersion = "1.0.0" })
end

local function write_docker(directory, config, layers, opts)
  local names = {}
  for i, layer in ipairs(layers) do
    names[i] = hex_of(layer.digest) .. ".tar"
    fs.rename(layer.path, directory .. "/" .. names[i])
  end
  local config_name = core.sha256(config) .. ".json"
  fs.write(directory .. "/" .. config_name, config)
  fs.write(directory .. "/manifest.json", json.write {
    { Config = config_name, Layers = names, RepoTags = opts.full_name and { opts.full_name } or json.null },
  })
end

-- Everything is made in a directory beside the destination, which is there in the end or not at all.
local function build(handle, row, opts)
  local rows = ancestors(handle, row)
  local work = fs.temp_dir(opts.parent .. "/.bough-export") -- its own name may be as long as names can be
  local _ <close> = setmetatable({}, { __close = function() fs.remove(work) end })
  local tree = work .. "/image"
  fs.mkdir(tree, 493)
  local tell = new_teller(opts)
  local layers = pack_layers(handle, row.uuid, work, opts, tell)
  local config = config_text(rows, layers);
  (opts.format == "oci" and write_oci or write_docker)(tree, config, layers, opts)
  local made = tree
  if opts.is_tar then
    made = work .. "/image.tar"
    progress.follow(handle:pack { directory = tree, out = made, compress = "none", plain = true }, tell)
  end
  fs.rename(made, opts.path, true)
  if opts.on_progress then
    local size = 0
    for _, layer in ipairs(layers) do size = size + layer.size end
    opts.on_progress {
      op = "export", item = opts.path, done = size, total = size, unit = "bytes", finished = true,
    }
  end
end

--- Writes an image. Waits. Raises `exists`, and `not_found` for a directory that is not there.
---@param image bough.image
---@param path string a directory to make, or a file where it ends in ".tar" or the format is "docker"
---@param opts { format: "oci"|"docker"|nil, layers: "chain"|"one"|nil, compress: "gzip"|"zstd"|"none"|nil,
---  tag: string?, name: string?, sparse: boolean?, on_progress: fun(event: bough.progress_event)? }?
---  layers: the image's chain (default), or one; compress: gzip for oci, none for docker; tag: its name
---  there, default the image's; sparse: holes stay holes, which not every reader of layers takes
---@param handle bough.local the image's engine
---@return string path
function M.write(image, path, opts, handle)
  local row = handle:resolve(image.uuid)
  if not row then raise("not_found", "export", "image %s is gone", tostring(image.uuid)) end
  opts = checked(path, opts, row)
  if fs.stat(opts.path, true) then raise("exists", "export", "%s is there already", quote(opts.path)) end
  local parent = opts.path:match("^(.*)/[^/]*$") or "."
  opts.parent = parent
  if not fs.stat(parent .. "/.") then
    raise("not_found", "export", "%s: there is no directory %s", quote(opts.path), quote(parent))
  end
  local good, problem = pcall(build, handle, row, opts)
  if good then return opts.path end
  if errors.is(problem) and not bring.is_interruption(problem) and not check.is_foreign(problem) then
    problem.op = "export" -- not the name of the step that failed
  end
  error(problem, 0)
end

return M
