--- The documents that describe an image: index, manifest, configuration. All of them come from strangers:
--- nothing is believed before it has been looked at, and every complaint is one line that names the place.

local check = require "bough.check"
local core = require "bough.core"
local errors = require "bough.error"
local json = require "bough.json"
local platform = require "bough.platform"

local M = {}

local quote = errors.quote

local MOST_LAYERS = 500
local MOST_ENTRIES = 2000 -- in an index
local MOST_LAYER_BYTES = 1 << 40

--- Where something was read, for messages.
---@class bough.place
---@field op string
---@field name string
---@field kind bough.error_kind what a broken document is: `corrupt` in a file, `protocol` from a registry
local place = {}
place.__index = place

---@param op string
---@param name string
---@param kind bough.error_kind?
---@return bough.place
function M.place(op, name, kind)
  return setmetatable({ op = op, name = name, kind = kind or "corrupt" }, place)
end

--- The same place, one document further in.
---@param name string
---@return bough.place
function place:inside(name) return M.place(self.op, self.name .. ": " .. name, self.kind) end

--- Raises with `kind`.
---@param kind bough.error_kind
---@param fmt string
function place:refuse(kind, fmt, ...) errors.raise(kind, self.op, "%s: " .. fmt, self.name, ...) end

--- Raises because what is here is broken.
---@param fmt string
function place:fault(fmt, ...) self:refuse(self.kind, fmt, ...) end

local manifest_types = {
  ["application/vnd.oci.image.manifest.v1+json"] = "manifest",
  ["application/vnd.docker.distribution.manifest.v2+json"] = "manifest",
  ["application/vnd.oci.image.index.v1+json"] = "index",
  ["application/vnd.docker.distribution.manifest.list.v2+json"] = "index",
}

local config_types = {
  ["application/vnd.oci.image.config.v1+json"] = true,
  ["application/vnd.docker.container.image.v1+json"] = true,
}

-- true: content that is there; "foreign": content that its maker may have left out
local layer_types = {
  ["application/vnd.docker.image.rootfs.diff.tar"] = true,
  ["application/vnd.docker.image.rootfs.diff.tar.gzip"] = true,
  ["application/vnd.docker.image.rootfs.diff.tar.zstd"] = true,
  ["application/vnd.docker.image.rootfs.foreign.diff.tar"] = "foreign",
  ["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"] = "foreign",
}
for _, suffix in ipairs { "", "+gzip", "+zstd" } do
  layer_types["application/vnd.oci.image.layer.v1.tar" .. suffix] = true
  layer_types["application/vnd.oci.image.layer.nondistributable.v1.tar" .. suffix] = "foreign"
end

--- A digest in short, for messages.
---@param digest string a checked one
---@return string
function M.short(digest) return digest:sub(1, 19) end

--- The hexadecimal part of a SHA-256 digest, lower case, 64 digits: the only thing from a document that
--- becomes part of a file name. Raises for anything else.
---@param value any
---@param at bough.place
---@return string
function M.hex(value, at)
  local hex = type(value) == "string" and #value == 71 and value:match("^sha256:([0-9a-f]+)$")
  if hex then return hex end
  if type(value) == "string" and value:find("^sha%d+:[0-9a-f]+$") and not value:find("^sha256:") then
    at:refuse("unsupported", "%s digests are not supported, only sha256", value:match("^%w+"))
  end
  at:fault("%s is no digest", quote(value))
end

--- A list for a message, which tells how many there are besides where they are too many for one line.
---@param names string[]
---@return string
function M.some(names)
  local text
  for i, name in ipairs(names) do
    if text and #text + #name > 200 then return ("%s and %d more"):format(text, #names - i + 1) end
    text = text and text .. ", " .. name or name
  end
  return text or "none"
end

local function text_or_nil(value) return type(value) == "string" and value or nil end

local function table_or_empty(value) return type(value) == "table" and value or {} end

---@class bough.descriptor
---@field digest string "sha256:..."
---@field hex string
---@field size integer
---@field media_type string?
---@field platform table? as it is in the document
---@field annotations table

--- Checks a descriptor.
---@param value any
---@param at bough.place
---@param most integer bytes
---@return bough.descriptor
function M.descriptor(value, at, most)
  if type(value) ~= "table" then at:fault("a descriptor is missing or no object") end
  local hex = M.hex(value.digest, at)
  local size = type(value.size) == "number" and math.tointeger(value.size)
  if not size or size < 0 or size > most then
    at:fault("%s has the size %s: at most %d bytes are taken", M.short(value.digest),
      type(value.size) == "number" and ("%.14g"):format(value.size) or quote(value.size), most)
  end
  return {
    digest = value.digest, hex = hex, size = size, media_type = text_or_nil(value.mediaType),
    platform = value.platform, annotations = table_or_empty(value.annotations),
  }
end

local function list_of(value, at, name, most)
  if value == nil or value == json.null then return {} end
  if type(value) ~= "table" or (next(value) ~= nil and value[1] == nil) then
    at:fault("%s is no list", name)
  end
  if #value > most then at:fault("%s has %d entries, at most %d are taken", name, #value, most) end
  return value
end

--- Reads a document and tells what it is.
---@param text string
---@param at bough.place
---@param media_type string? what its descriptor or the server called it
---@return "index"|"manifest"
---@return table
function M.read(text, at, media_type)
  local value, why = json.read(text)
  if not value then at:fault("%s", why) end
  local named = media_type or text_or_nil(value.mediaType)
  local kind = manifest_types[named or ""]
  if value.manifests ~= nil and value.layers ~= nil then
    -- readers would disagree on what the image is
    at:fault("it is an index and a manifest at once")
  end
  if not kind then
    if value.schemaVersion == 1 then
      at:refuse("unsupported", "its manifest has the old form of schema 1: push the image anew")
    end
    if named and named:find("^application/vnd%.") then
      at:refuse("unsupported", "media type %s is unknown", quote(named))
    end
    kind = value.manifests ~= nil and "index" or "manifest"
  end
  if value[kind == "index" and "manifests" or "layers"] == nil then
    at:fault("it is no %s", kind)
  end
  return kind, value
end

--- The entries of an index.
---@param value table
---@param at bough.place
---@return bough.descriptor[]
function M.entries(value, at)
  local entries = {}
  for i, entry in ipairs(list_of(value.manifests, at, "manifests", MOST_ENTRIES)) do
    entries[i] = M.descriptor(entry, at, json.most_bytes)
  end
  return entries
end

---@class bough.layer : bough.descriptor
---@field foreign boolean? its content may be missing

--- The configuration's descriptor and the layers of a manifest, bottom first.
---@param value table
---@param at bough.place
---@return bough.descriptor
---@return bough.layer[]
function M.parts(value, at)
  local config = M.descriptor(value.config, at:inside "config", json.most_bytes)
  if config.media_type and not config_types[config.media_type] then
    at:refuse("unsupported", "it is no container image but %s", quote(config.media_type))
  end
  local layers = {}
  for i, entry in ipairs(list_of(value.layers, at, "layers", MOST_LAYERS)) do
    local here = at:inside("layer " .. i)
    local layer = M.descriptor(entry, here, MOST_LAYER_BYTES)
    M.check_layer(layer, here)
    layers[i] = layer
  end
  return config, layers
end

--- Checks that the content of a layer is of a kind that can be unpacked.
---@param layer bough.layer
---@param at bough.place
function M.check_layer(layer, at)
  local known = layer_types[layer.media_type or "application/vnd.oci.image.layer.v1.tar"]
  if not known then
    local reason = layer.media_type:find("+encrypted", 1, true) and "it is encrypted: decrypt the image first"
      or "its media type is unknown"
    at:refuse("unsupported", "%s: %s", quote(layer.media_type), reason)
  end
  if known == "foreign" then layer.foreign = true end
end

local function strings(value, at, name)
  local all = {}
  for i, text in ipairs(list_of(value, at, name, 100000)) do
    if type(text) ~= "string" or text:find("\0", 1, true) then
      at:fault("%s holds %s, which is no plain text", name, quote(text))
    end
    all[i] = text
  end
  return all[1] ~= nil and all or nil
end

local function text_field(value, at, name)
  if value == nil or value == json.null or value == "" then return nil end
  if type(value) ~= "string" or value:find("\0", 1, true) then
    at:fault("%s is %s, which is no plain text", name, quote(value))
  end
  return value
end

local function map_field(value, at, name)
  if value == nil or value == json.null then return {} end
  if type(value) ~= "table" or value[1] ~= nil then at:fault("%s is no object", name) end
  return value
end

-- What a run starts with unless it says otherwise.
local function defaults_of(config, at)
  local defaults = {
    entrypoint = strings(config.Entrypoint, at, "Entrypoint"), cmd = strings(config.Cmd, at, "Cmd"),
    cwd = text_field(config.WorkingDir, at, "WorkingDir"), user = text_field(config.User, at, "User"),
  }
  local env = {}
  for _, setting in ipairs(strings(config.Env, at, "Env") or {}) do
    -- what is no setting is passed over, as all others do
    if setting:find("^[^=]+=") then env[#env + 1] = setting end
  end
  if env[1] then defaults.env = env end
  if defaults.cwd and defaults.cwd:sub(1, 1) ~= "/" then defaults.cwd = "/" .. defaults.cwd end
  if defaults.user then
    defaults.user = defaults.user:gsub(":$", "")
    local good, problem = pcall(check.user, defaults.user, at.op)
    if not good then at:fault("its %s", problem.message) end
  end
  local labels = {}
  for name, text in pairs(map_field(config.Labels, at, "Labels")) do
    labels[name] = text_field(text, at, "Labels") or ""
  end
  if next(labels) then defaults.labels = labels end
  local ports = {}
  for name in pairs(map_field(config.ExposedPorts, at, "ExposedPorts")) do ports[#ports + 1] = name end
  table.sort(ports)
  if ports[1] then defaults.exposed_ports = ports end
  return defaults
end

---@class bough.image_config
---@field diff_ids string[]
---@field chains string[] what each layer is on top of those below it
---@field defaults string JSON
---@field platform bough.platform?

--- Names each layer together with all below it, as the OCI specification does.
---@param diff_ids string[]
---@return string[]
function M.chains(diff_ids)
  local chains = {}
  for i, id in ipairs(diff_ids) do
    chains[i] = i == 1 and id or "sha256:" .. core.sha256(chains[i - 1] .. " " .. id)
  end
  return chains
end

--- Reads an image's configuration.
---@param text string
---@param at bough.place
---@param layer_count integer
---@return bough.image_config
function M.config(text, at, layer_count)
  local value, why = json.read(text)
  if not value then at:fault("%s", why) end
  local rootfs = map_field(value.rootfs, at, "rootfs")
  local diff_ids = list_of(rootfs.diff_ids, at, "rootfs.diff_ids", MOST_LAYERS)
  for _, id in ipairs(diff_ids) do M.hex(id, at) end
  if #diff_ids ~= layer_count then
    at:fault("it speaks of %d layers, and the image has %d", #diff_ids, layer_count)
  end
  local built_for = platform.read(value)
  local defaults = defaults_of(map_field(value.config, at, "config"), at)
  if built_for then
    defaults.os, defaults.architecture, defaults.variant = built_for.os, built_for.architecture,
      built_for.variant
  end
  return {
    diff_ids = diff_ids, chains = M.chains(diff_ids), defaults = json.write(defaults), platform = built_for,
  }
end

--- Refuses an image that was built for another machine than the one asked for.
---@param config bough.image_config
---@param wanted bough.platform
---@param at bough.place
function M.check_platform(config, wanted, at)
  if config.platform and not platform.fits(wanted, config.platform) then
    at:refuse("unsupported", "it is for %s, not for %s: platform = %q takes it all the same",
      platform.text(config.platform), platform.text(wanted), platform.text(config.platform))
  end
end

return M
