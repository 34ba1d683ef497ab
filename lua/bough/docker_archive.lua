--- What `docker save` writes, unpacked: `manifest.json`, and the configurations and layers that it names.
-- A source of an image like bough.layout's.

local core = require "bough.core"
local errors = require "bough.error"
local json = require "bough.json"
local layout = require "bough.layout"
local manifest = require "bough.manifest"
local platform = require "bough.platform"

local M = {}

local quote = errors.quote

local MOST_IMAGES = 1000

local source = {}
source.__index = source

-- A path from the manifest in its one proper form.
local function relative(value, at, what)
  if type(value) ~= "string" or value == "" or #value > 1000 or value:find("%c") then
    at:fault("%s is no path of a file: %s", what, quote(value))
  end
  local parts = {}
  for part in (value .. "/"):gmatch("([^/]*)/") do
    if part == ".." or (part == "" and (parts[1] ~= nil or value:sub(1, 1) == "/")) then
      at:fault("%s leads out of the archive: %s", what, quote(value))
    end
    if part ~= "." and part ~= "" then parts[#parts + 1] = part end
  end
  if not parts[1] then at:fault("%s is no path of a file: %s", what, quote(value)) end
  return table.concat(parts, "/")
end

-- Old versions of docker save write a layer once, and "../<id>/layer.tar" as a link where it comes again.
local function layer_path(self, name, at)
  local found = name:find("^[^/]+/layer%.tar$") and core.fs.stat(self.directory .. "/" .. name, true)
  if found and found.kind == "symlink" then
    local id = (found.symlink_to or ""):match("^%.%./([%w_-]+)/layer%.tar$")
    if not id then at:fault("%s is a link to %s", quote(name), quote(found.symlink_to)) end
    name = id .. "/layer.tar"
  end
  return layout.inside(self.directory, name, at)
end

--- The path of a layer's content; whether it is what the configuration says is seen when it is unpacked.
---@param i integer
---@param on_bytes fun(done: integer)?
---@return string path
function source:get(i, _, on_bytes)
  if on_bytes then on_bytes(self.layers[i].size) end
  return self.layers[i].path
end

-- "debian" is "docker.io/library/debian:latest".
local function full(name)
  if not name:match("[^/]*$"):find("[:@]") then name = name .. ":latest" end
  return (name:gsub("^docker%.io/", ""):gsub("^library/", ""):gsub("^localhost/", ""))
end

local function tags_of(entry)
  local tags = {}
  for _, tag in ipairs(type(entry.RepoTags) == "table" and entry.RepoTags or {}) do
    if type(tag) == "string" then tags[#tags + 1] = tag end
  end
  return tags
end

local function told(entries)
  local all = {}
  for i, entry in ipairs(entries) do
    local tags = tags_of(entry)
    all[#all + 1] = tags[1] and quote(tags[1]) or ("@%d"):format(i - 1)
  end
  return manifest.some(all)
end

local function pick(entries, ref, at)
  if not ref then
    if entries[2] then at:refuse("invalid", "several images are in it: name one of %s", told(entries)) end
    return entries[1]
  end
  local number = ref:match("^@(%d+)$")
  if number and entries[tonumber(number) + 1] then return entries[tonumber(number) + 1] end
  for _, entry in ipairs(entries) do
    for _, tag in ipairs(tags_of(entry)) do
      if tag == ref or full(tag) == full(ref) then return entry end
    end
  end
  at:refuse("not_found", "no image %s in it: it has %s", quote(ref), told(entries))
end

--- Opens an unpacked archive. Waits. Raises `not_found` with what there is, `corrupt`, `unsupported`.
---@param directory string
---@param at bough.place
---@param opts { ref: string?, platform: bough.platform? } ref: one of its tags, or "@0", "@1", ...
---@return bough.source
function M.open(directory, at, opts)
  local here = at:inside "manifest.json"
  local entries, why = json.read(layout.text(directory, "manifest.json", here))
  if not entries then here:fault("%s", why) end
  if type(entries[1]) ~= "table" then here:fault "it lists no images" end
  if #entries > MOST_IMAGES then here:fault("it lists %d images", #entries) end
  for _, entry in ipairs(entries) do
    if type(entry) ~= "table" then here:fault "it lists something that is no image" end
  end
  local entry = pick(entries, opts.ref, at)
  local names = entry.Layers
  if names == nil or names == json.null then names = {} end
  if type(names) ~= "table" or #names > 500 or (next(names) ~= nil and names[1] == nil) then
    here:fault "its layers are no list of at most 500"
  end

  local name = relative(entry.Config, here, "config")
  local config_place = at:inside "config"
  local text = layout.text(directory, name, config_place)
  local hex = name:match("^blobs/sha256/(%x+)$") or name:match("^(%x+)%.json$")
  if hex and #hex == 64 and core.sha256(text) ~= hex then
    config_place:fault("its content has another digest than its name, %s", manifest.short("sha256:" .. hex))
  end
  local config = manifest.config(text, config_place, #names)
  manifest.check_platform(config, opts.platform or platform.here(), config_place)

  local self = setmetatable({ directory = directory, place = at, config = config, layers = {} }, source)
  for i, layer in ipairs(names) do
    local there = at:inside("layer " .. i)
    local path = layer_path(self, relative(layer, here, "layer " .. i), there)
    self.layers[i] = { path = path, size = core.fs.stat(path, true).size }
  end
  return self
end

return M
