--- Makes OCI layouts and docker archives, whole or spoilt: it never refuses anything.
--
--     local layer = maker.layer({ { name = "f", data = "x" } }, "gzip")
--     maker.layout(dir, { maker.image { layers = { layer } } })

local core = require "bough.core"
local json = require "bough.json"
local platform = require "bough.platform"
local scratch = require "spec.support.scratch"
local tar = require "spec.support.fault_tar"

local M = {}

local quote, sh = scratch.quote, scratch.sh

local OCI = "application/vnd.oci.image."
local here = platform.here()

function M.digest(text) return "sha256:" .. core.sha256(text) end

function M.read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "a"
  file:close()
  return text
end

--- A copy of a table with some fields changed; `false` removes one.
function M.with(from, changes)
  local all = {}
  for name, value in pairs(from) do all[name] = value end
  for name, value in pairs(changes or {}) do
    if value == false then all[name] = nil else all[name] = value end
  end
  return all
end

local programs = { gzip = "gzip -n", zstd = "zstd -q" }

function M.compress(data, how)
  if not programs[how] then return data end
  local path = scratch.file(data)
  sh(("%s <%s >%s.out"):format(programs[how], quote(path), quote(path)))
  return M.read(path .. ".out")
end

--- A layer.
---@param entries table[]|string as fault_tar takes them, or a whole tar
---@param how "gzip"|"zstd"|nil
function M.layer(entries, how)
  local plain = type(entries) == "string" and entries or tar.archive(entries)
  local data = M.compress(plain, how)
  return {
    data = data, plain = plain, diff_id = M.digest(plain),
    descriptor = {
      mediaType = OCI .. "layer.v1.tar" .. (programs[how] and "+" .. how or ""),
      digest = M.digest(data), size = #data,
    },
  }
end

--- An image of layers: its documents as tables that may be spoilt, and as text by `M.seal`.
---@param opts { layers: table[], config: table?, platform: table?, name: string? }
function M.image(opts)
  local diff_ids, descriptors = {}, {}
  for i, layer in ipairs(opts.layers) do
    diff_ids[i], descriptors[i] = layer.diff_id, layer.descriptor
  end
  local on = opts.platform or here
  return {
    name = opts.name, platform = opts.platform, layers = opts.layers,
    config = {
      architecture = on.architecture, os = on.os, variant = on.variant, config = opts.config or {},
      rootfs = { type = "layers", diff_ids = diff_ids },
    },
    manifest = {
      schemaVersion = 2, mediaType = OCI .. "manifest.v1+json", layers = descriptors,
      config = { mediaType = OCI .. "config.v1+json" },
    },
  }
end

-- cjson and ours write an empty list as an object
local function to_text(value)
  if type(value) == "string" then return value end
  return (json.write(value):gsub('"(diff_ids)":{}', '"%1":[]'):gsub('"(layers)":{}', '"%1":[]')
    :gsub('"(manifests)":{}', '"%1":[]'))
end
M.to_text = to_text

--- The descriptor of an image or index, and its blobs by digest.
function M.seal(image, blobs)
  if image.index then
    local entries = {}
    for i, one in ipairs(image.index) do entries[i] = M.seal(one, blobs) end
    local text = to_text { schemaVersion = 2, mediaType = OCI .. "index.v1+json", manifests = entries }
    blobs[M.digest(text)] = text
    return { mediaType = OCI .. "index.v1+json", digest = M.digest(text), size = #text,
      platform = image.platform, annotations = M.annotations(image) }
  end
  for _, layer in ipairs(image.layers) do blobs[layer.descriptor.digest] = layer.data end
  local config = to_text(image.config)
  blobs[M.digest(config)] = config
  local described = image.manifest.config
  if described then
    described.digest, described.size = described.digest or M.digest(config), described.size or #config
  end
  local text = to_text(image.manifest_text or image.manifest)
  blobs[M.digest(text)] = text
  return { mediaType = image.manifest.mediaType, digest = M.digest(text), size = #text,
    platform = image.platform, annotations = M.annotations(image) }
end

function M.annotations(image)
  return image.name and { ["org.opencontainers.image.ref.name"] = image.name } or nil
end

function M.blob(dir, digest) return dir .. "/blobs/sha256/" .. digest:match "^sha256:(.*)" end

--- Writes a layout of images.
---@return string dir
---@return table index as it was written
function M.layout(dir, images)
  local blobs, entries = {}, {}
  for i, image in ipairs(images) do entries[i] = M.seal(image, blobs) end
  sh("mkdir -p " .. quote(dir .. "/blobs/sha256"))
  for digest, data in pairs(blobs) do scratch.file(data, M.blob(dir, digest)) end
  local index = { schemaVersion = 2, mediaType = OCI .. "index.v1+json", manifests = entries }
  scratch.file(to_text(index), dir .. "/index.json")
  scratch.file('{"imageLayoutVersion":"1.0.0"}', dir .. "/oci-layout")
  return dir, index
end

--- Writes what `docker save` does, unpacked; `form` "old" has a directory per layer, and links where a
--- layer comes twice.
---@return string dir
function M.docker(dir, images, form)
  local listed, at = {}, {}
  sh("mkdir -p " .. quote(dir))
  for i, image in ipairs(images) do
    local config = to_text(image.config)
    local name = core.sha256(config) .. ".json"
    scratch.file(config, dir .. "/" .. name)
    local names = {}
    for j, layer in ipairs(image.layers) do
      if form == "old" then
        local id = core.sha256(("layer %d of %d"):format(j, i))
        sh("mkdir -p " .. quote(dir .. "/" .. id))
        names[j] = id .. "/layer.tar"
        if at[layer.diff_id] then
          sh(("ln -s ../%s/layer.tar %s"):format(at[layer.diff_id], quote(dir .. "/" .. names[j])))
        else
          at[layer.diff_id] = id
          scratch.file(layer.data, dir .. "/" .. names[j])
          scratch.file("1.0", dir .. "/" .. id .. "/VERSION")
        end
      else
        names[j] = layer.diff_id:match "^sha256:(.*)" .. ".tar"
        scratch.file(layer.data, dir .. "/" .. names[j])
      end
    end
    listed[i] = { Config = name, Layers = names, RepoTags = image.name and { image.name } or json.null }
  end
  scratch.file(to_text(listed), dir .. "/manifest.json")
  return dir
end

--- Packs a directory as an archive in the order of its names; returns the path.
function M.pack(dir, path)
  sh(("tar -C %s --sort=name --numeric-owner -cf %s ."):format(quote(dir), quote(path)))
  return path
end

return M
