--- An OCI image layout in a directory: `oci-layout`, `index.json`, `blobs/sha256/...`.
--
-- Opening one gives a *source* of an image, as bough.docker_archive and bough.registry do:
-- { config = bough.image_config, layers = array of { size = bytes }, place = bough.place } with
-- `source:get(i, directory, on_bytes)`, which returns the path of layer i's checked content, a file in
-- `directory` where it had to be brought from elsewhere.

local core = require "bough.core"
local errors = require "bough.error"
local json = require "bough.json"
local manifest = require "bough.manifest"
local platform = require "bough.platform"

local M = {}

local quote = errors.quote

local MOST_DEPTH = 3 -- of indexes in indexes

local REF_NAME = "org.opencontainers.image.ref.name"
local FULL_NAME = "io.containerd.image.name"

---@class bough.source
---@field config bough.image_config
---@field layers { size: integer }[] bottom first
---@field place bough.place
local source = {}
source.__index = source

-- The path of something in the layout. Nothing on the way may be a link: it would lead anywhere.
local function inside(dir, relative, at, size)
  local path = dir
  for part, more in relative:gmatch("([^/]+)(/?)") do
    path = path .. "/" .. part
    local found = core.fs.stat(path, true)
    if not found then at:fault("%s is missing", quote(relative)) end
    local wanted = more == "/" and "dir" or "file"
    if found.kind ~= wanted then
      at:fault("%s is a %s instead of a %s", quote(part), found.kind, wanted)
    end
    if size and more == "" and found.size ~= size then
      at:fault("%s has %d bytes instead of %d", quote(manifest.short("sha256:" .. part)), found.size, size)
    end
  end
  return path
end

--- The text of a small file in a directory of somebody else's making.
---@param dir string
---@param relative string checked: no empty part, no "." or ".."
---@param at bough.place
---@param size integer? what it must have
---@return string
function M.text(dir, relative, at, size)
  local path = inside(dir, relative, at, size)
  local text = core.fs.read(path, json.most_bytes + 1)
  if #text > json.most_bytes then
    at:fault("%s is larger than %d MiB", quote(relative), json.most_bytes >> 20)
  end
  return text
end

--- The path of a regular file in a directory of somebody else's making.
M.inside = inside

local function blob_name(descriptor) return "blobs/sha256/" .. descriptor.hex end

local function blob_text(dir, descriptor, at)
  local text = M.text(dir, blob_name(descriptor), at, descriptor.size)
  local hex = core.sha256(text)
  if hex ~= descriptor.hex then
    at:fault("the content of %s has the digest %s", manifest.short(descriptor.digest),
      manifest.short("sha256:" .. hex))
  end
  return text
end

-- The names under which an entry of index.json is known.
local function names_of(entry)
  local names = {}
  for _, key in ipairs { REF_NAME, FULL_NAME } do
    local name = entry.annotations[key]
    if type(name) == "string" and name ~= "" then names[#names + 1] = name end
  end
  return names
end

local function has_name(entry, ref)
  for _, name in ipairs(names_of(entry)) do
    if name == ref or name == "docker.io/" .. ref or name == "docker.io/library/" .. ref then return true end
  end
  return entry.digest == ref
end

local function told(entries)
  local all, seen = {}, {}
  for _, entry in ipairs(entries) do
    local names = names_of(entry)
    local name = names[#names] or manifest.short(entry.digest)
    if not seen[name] then
      seen[name] = true
      all[#all + 1] = quote(name)
    end
  end
  return manifest.some(all)
end

-- The entries of index.json that may be meant.
local function meant(entries, ref, at)
  if ref then
    local found = {}
    for _, entry in ipairs(entries) do
      if has_name(entry, ref) then found[#found + 1] = entry end
    end
    if not found[1] then at:refuse("not_found", "no image %s in it: it has %s", quote(ref), told(entries)) end
    return found
  end
  if not entries[1] then at:refuse("not_found", "there is no image in it") end
  local first
  for _, entry in ipairs(entries) do
    -- those without names are one image for several platforms, if they say for which
    local key = names_of(entry)[1] or (platform.read(entry.platform) and "" or entry.digest)
    first = first or key
    if key ~= first then at:refuse("invalid", "several images are in it: name one of %s", told(entries)) end
  end
  return entries
end

-- Follows indexes to the manifest for `wanted`.
local function descend(dir, entries, wanted, at, depth)
  local entry, same = entries[1], true
  for _, other in ipairs(entries) do same = same and other.digest == entry.digest end
  -- a single image may say nothing of its platform here: its configuration does
  if not same or (depth > 1 and entry and platform.read(entry.platform)) then
    entry = platform.pick(wanted, entries)
  end
  if not entry then
    at:refuse("not_found", "no image for %s in it: it has %s", platform.text(wanted), platform.list(entries))
  end
  local here = at:inside("manifest " .. manifest.short(entry.digest))
  local kind, value = manifest.read(blob_text(dir, entry, here), here, entry.media_type)
  if kind == "manifest" then return value, here end
  if depth == MOST_DEPTH then at:fault("indexes are nested more than %d deep", MOST_DEPTH) end
  return descend(dir, manifest.entries(value, here), wanted, at, depth + 1)
end

--- The path of a layer's content, which has been compared with its digest. Waits.
---@param i integer
---@param on_bytes fun(done: integer)?
---@return string path
function source:get(i, _, on_bytes)
  local layer = self.layers[i]
  local at = self.place:inside("layer " .. i)
  local name = blob_name(layer)
  if layer.foreign and not core.fs.stat(self.directory .. "/" .. name, true) then
    at:refuse("unsupported", "its content is not in the image: %s may not be distributed",
      manifest.short(layer.digest))
  end
  local path = inside(self.directory, name, at, layer.size)
  local hex, size = core.sha256_file(path)
  if hex ~= layer.hex or size ~= layer.size then
    at:fault("the content of %s has the digest %s", manifest.short(layer.digest),
      manifest.short("sha256:" .. hex))
  end
  if on_bytes then on_bytes(size) end
  return path
end

--- Opens a layout. Waits. Raises `not_found` with what there is, `corrupt`, `unsupported`.
---@param directory string
---@param at bough.place
---@param opts { ref: string?, platform: bough.platform? } ref: the image's name in the layout
---@return bough.source
function M.open(directory, at, opts)
  local version, why = json.read(M.text(directory, "oci-layout", at))
  version = version and version.imageLayoutVersion
  if type(version) ~= "string" then at:fault("oci-layout %s", why or "names no version") end
  if not version:find("^1%.") then
    at:refuse("unsupported", "oci-layout names version %s, only 1.x is known", quote(version))
  end
  local here = at:inside "index.json"
  local kind, index = manifest.read(M.text(directory, "index.json", here), here,
    "application/vnd.oci.image.index.v1+json")
  assert(kind == "index")
  local wanted = opts.platform or platform.here()
  local value, there = descend(directory, meant(manifest.entries(index, here), opts.ref, at), wanted, at, 1)
  local config_at, layers = manifest.parts(value, there)
  local config_place = there:inside "config"
  local config = manifest.config(blob_text(directory, config_at, config_place), config_place, #layers)
  manifest.check_platform(config, wanted, config_place)
  return setmetatable({ directory = directory, place = at, config = config, layers = layers }, source)
end

return M
