--- Images in registries: the OCI distribution protocol, as far as taking goes.
--
-- `resolve` finds out what an image consists of; its layers are fetched one by one, so that whoever has some
-- of them already does not fetch those. Every byte is compared with its digest. An address that is this
-- machine's own is asked without TLS, any other with it unless `insecure` says so.

local core = require "bough.core"
local errors = require "bough.error"
local manifest = require "bough.manifest"
local platform = require "bough.platform"
local reference = require "bough.reference"
local registry_session = require "bough.registry_session"
local task = require "bough.task"

local M = {}

local quote = errors.quote

local MOST_MANIFEST = 4 << 20
local MOST_CONFIG = 8 << 20
local MOST_DEPTH = 3 -- indexes within indexes
local AT_ONCE = 3 -- layers
local PROGRESS = 64 << 10 -- bytes that make up for an attempt

local ACCEPT = table.concat({
  "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json",
  "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json",
}, ", ")

---@class bough.registry_options
---@field username string? with `password`; default: what docker's config.json has
---@field password string?
---@field anonymous boolean? docker's config.json is not looked at
---@field platform (bough.platform|string)? default: this machine's
---@field insecure boolean? certificates are not checked, and a registry without TLS will do
---@field outside boolean? nothing on this machine is connected to (`denied`), whatever the registry's name or its
---  redirects and places for tokens lead to
---@field max_bytes integer? of all layers, as they travel
---@field http bough.http? a client to be shared; it stays open
---@field op string? for messages
---@field retry_delay number? seconds before the second attempt, 0.5; doubled for each further one
---@field stall_timeout number? seconds for which a registry may be silent, 30

local known_options = {
  "username", "password", "anonymous", "platform", "insecure", "outside", "max_bytes", "http", "op", "retry_delay",
  "stall_timeout", "dir", "on_progress",
}

---@class bough.registry_image
---@field reference bough.reference
---@field digest string of the manifest
---@field manifest table
---@field config_text string
---@field config bough.image_config
---@field layers bough.layer[] bottom first
---@field files table<string, string>? after `pull`: digest -> path
local image = {}
local image_meta = { __index = image, __name = "bough.registry_image" }

function image_meta:__tostring()
  return ("image %s (%d layers) at %s"):format(self.reference.name, #self.layers, self.reference.registry)
end

-- Documents ----------------------------------------------------------------------------------------

local function same_digest(text, digest, at)
  local found = "sha256:" .. core.sha256(text)
  if found ~= digest then
    at:refuse("corrupt", "the content of %s has the digest %s", manifest.short(digest), manifest.short(found))
  end
end

-- The text of a manifest or index, compared with all that was said of it.
local function fetch_manifest(session, ref, expected, at)
  local text, answer = session:document("/manifests/" .. ref, MOST_MANIFEST, { Accept = ACCEPT })
  local media_type = (answer.headers["content-type"] or ""):match("^%s*([^;%s]*)"):lower()
  local told = answer.headers["docker-content-digest"]
  if expected then
    same_digest(text, expected.digest, at)
    if expected.size and #text ~= expected.size then
      at:fault("%s has %d bytes instead of %d", manifest.short(expected.digest), #text, expected.size)
    end
  elseif told and told:find("^sha256:") then
    same_digest(text, told, at)
  end
  return text, media_type, "sha256:" .. core.sha256(text)
end

-- Follows indexes to the manifest for `wanted`.
local function descend(session, ref, expected, wanted, at, depth)
  local text, media_type, digest = fetch_manifest(session, ref, expected, at)
  local kind, value = manifest.read(text, at, media_type)
  if kind == "manifest" then return value, digest end
  if depth == MOST_DEPTH then at:fault("indexes are nested more than %d deep", MOST_DEPTH) end
  local entries = manifest.entries(value, at)
  local entry = platform.pick(wanted, entries)
  if not entry then
    at:refuse("not_found", "there is none for %s: there is %s", platform.text(wanted), platform.list(entries))
  end
  local here = at:inside("manifest " .. manifest.short(entry.digest))
  return descend(session, entry.digest, entry, wanted, here, depth + 1)
end

local function fetch_config(session, descriptor, at)
  if descriptor.size > MOST_CONFIG then
    at:fault("it has %d bytes, at most %d are taken", descriptor.size, MOST_CONFIG)
  end
  local text = session:document("/blobs/" .. descriptor.digest, descriptor.size)
  if #text ~= descriptor.size then at:fault("it has %d bytes instead of %d", #text, descriptor.size) end
  same_digest(text, descriptor.digest, at)
  return text
end

local function wanted_platform(given, op)
  if given == nil then return platform.here() end
  if type(given) == "table" then
    local wanted = platform.read(given)
    if wanted then return wanted end
  end
  return platform.parse(given, op)
end

local function check_options(opts, op)
  opts = errors.check_keys(op, opts, known_options)
  if (opts.username == nil) ~= (opts.password == nil) then
    errors.raise("invalid", op, "username and password go together: %s is missing",
      opts.username and "password" or "username")
  end
  for _, name in ipairs { "username", "password" } do
    local value = opts[name]
    if value ~= nil and (type(value) ~= "string" or value:find("%c")) then
      errors.raise("invalid", op, "%s must be a string without control characters", name) -- never shown
    end
  end
  if opts.username and not opts.username:find("^[^:]+$") then
    errors.raise("invalid", op, "username may not be empty nor hold a colon")
  end
  return opts
end

--- Finds out what an image consists of: manifest and configuration are fetched and checked. Waits.
--- Raises `invalid` for a bad reference, `not_found`, `auth`, `denied`, `unsupported` (old or strange
--- images), `corrupt` (wrong digests), `protocol` (nonsense), `transport`, `timeout`, `api` (the registry
--- gives up).
---@param ref string|bough.reference
---@param opts bough.registry_options?
---@return bough.registry_image close it when its layers are there; `__close` does
function M.resolve(ref, opts)
  local op = type(opts) == "table" and opts.op or "pull"
  opts = check_options(opts, op)
  if type(ref) ~= "table" then ref = reference.parse(ref, op) end
  local wanted = wanted_platform(opts.platform, op)
  local self = setmetatable({ reference = ref, layers = {} }, image_meta)
  if not opts.http then
    self.own_client = core.http { user_agent = "bough", verify = not opts.insecure, outside = opts.outside }
  end
  self.at = manifest.place(op, quote(ref.name), "protocol")
  local good, problem = pcall(function()
    local session = registry_session.open(ref, {
      op = op, client = opts.http or self.own_client, username = opts.username, password = opts.password,
      anonymous = opts.anonymous, insecure = opts.insecure, retry_delay = opts.retry_delay,
      stall_timeout = opts.stall_timeout,
    })
    self.session = session
    local expected = ref.digest and { digest = ref.digest } or nil
    local value, digest = descend(session, ref.digest or ref.tag, expected, wanted, self.at, 1)
    local config_at, layers = manifest.parts(value, self.at)
    local total = 0
    for _, layer in ipairs(layers) do total = total + layer.size end
    if opts.max_bytes and total > opts.max_bytes then
      self.at:refuse("resource", "its layers have %d bytes, and max_bytes is %d", total, opts.max_bytes)
    end
    local here = self.at:inside "config"
    self.config_text = fetch_config(session, config_at, here)
    self.config = manifest.config(self.config_text, here, #layers)
    manifest.check_platform(self.config, wanted, here)
    self.manifest, self.digest, self.layers = value, digest, layers
    self.config_digest = config_at.digest
  end)
  if not good then
    self:close()
    if errors.is(problem) and problem.op == "http" then problem.op = op end
    error(problem, 0)
  end
  return self
end

--- Lets go of the connections.
function image:close()
  if self.own_client then self.own_client:close() end
  self.own_client = nil
end

image_meta.__close = image.close

-- Layers -------------------------------------------------------------------------------------------

local function is_there(path, layer)
  local found = core.fs.stat(path)
  if not found or found.kind ~= "file" or found.size ~= layer.size then return false end
  return core.sha256_file(path) == layer.hex
end

-- One attempt to get what is missing. Returns "done"; "spoilt" and why, when what came is not what was asked
-- for; or "again", the answer or error, and whether there was progress.
local function attempt(session, layer, sink, tick)
  if sink.size > layer.size then sink:reset() end
  local before = sink.size
  local html
  if before < layer.size then
    local request = { sink = sink, resume = true }
    local good, answer = pcall(session.once, session, "/blobs/" .. layer.digest, request, tick)
    local moved = sink.size - before >= PROGRESS
    if not good then
      if not errors.is(answer) or answer.op ~= "http" then error(answer, 0) end
      if answer.kind == "resource" and not answer.errno then
        return "spoilt", ("more come than its %d bytes"):format(layer.size)
      end
      if answer.kind == "protocol" then
        sink:reset()
        return "again", answer, false
      end
      if session.is_passing(answer) then return "again", answer, moved end
      error(answer, 0)
    end
    if answer.status == 416 then
      sink:reset()
      return "again", answer, false
    end
    if session.is_passing(answer) then return "again", answer, moved end
    if answer.status ~= 200 and answer.status ~= 206 then session:explain(answer) end
    html = (answer.headers["content-type"] or ""):find("^%s*text/html")
  end
  local hex = sink:sha256()
  if sink.size == layer.size and hex == layer.hex then return "done" end
  if html then return "spoilt", "a web page comes in its place: is nothing in between?" end
  if sink.size < layer.size then
    return "spoilt", ("only %d of its %d bytes come"):format(sink.size, layer.size)
  end
  return "spoilt", "the content has the digest " .. manifest.short("sha256:" .. hex)
end

local function fetch(self, layer, path, tick_at)
  local session = self.session
  local part = path .. ".part"
  local again, forget = session:patience()
  local spoilt = false
  while true do
    local outcome, answer, moved
    do
      local sink <close> = core.sink(part, { resume = true, max_bytes = layer.size })
      local tick = tick_at and function() tick_at(sink.size) end
      outcome, answer, moved = attempt(session, layer, sink, tick)
    end
    if outcome == "done" then return core.fs.rename(part, path) end
    if outcome == "spoilt" then
      core.fs.remove(part)
      if spoilt then self.at:refuse("corrupt", "layer %s: %s", layer.digest, answer) end
      spoilt = true
    else
      if moved then forget() end
      if not again(answer) then
        if not errors.is(answer) then session:explain(answer) end
        error(answer, 0)
      end
    end
  end
end

--- Fetches the content of a layer, as it travels (compressed), into a local file. What is at
--- `path .. ".part"` from an earlier attempt is gone on with; what is at `path`, if it is that layer, is left
--- alone. Waits. Raises `corrupt` naming the digest when the registry has something else.
---@param layer bough.layer one of `layers`
---@param path string
---@param on_bytes fun(done: integer)? told now and then how many bytes are there
function image:fetch(layer, path, on_bytes)
  if is_there(path, layer) then
    if on_bytes then on_bytes(layer.size) end
    return
  end
  local failed
  local good, problem = pcall(fetch, self, layer, path, on_bytes and function(done)
    local fine, why = pcall(on_bytes, done)
    if not fine then
      failed = { why }
      error(why, 0)
    end
  end)
  if failed then error(failed[1], 0) end
  if good then return end
  if errors.is(problem) and (problem.op == "http" or problem.op == "sink") then
    if problem.op == "http" then problem.message = self.at.name .. ": " .. problem.message end
    problem.op = self.at.op
  end
  error(problem, 0)
end

local function file_name(directory, digest) return directory .. "/" .. digest:gsub(":", "-") end

--- Fetches an image whole: its configuration and layers as files `<dir>/sha256-<hex>`, some layers at a time.
--- Waits.
---@param ref string|bough.reference
---@param opts bough.registry_options|{ dir: string, on_progress: fun(event: bough.progress_event)? }
---@return bough.registry_image closed, with `files`
function M.pull(ref, opts)
  local op = type(opts) == "table" and opts.op or "pull"
  if type(opts) ~= "table" or type(opts.dir) ~= "string" or opts.dir == "" then
    errors.raise("invalid", op, "dir is missing: the directory to put the files in")
  end
  local self <close> = M.resolve(ref, opts)
  local files, work = {}, { limit = AT_ONCE }
  for _, layer in ipairs(self.layers) do
    local path = file_name(opts.dir, layer.digest)
    if not files[layer.digest] then
      work[#work + 1] = function()
        local event = opts.on_progress and { op = "download", item = layer.digest, unit = "bytes" }
        self:fetch(layer, path, event and function(done)
          local told = { done = done, total = layer.size, finished = done == layer.size or nil }
          for name, value in pairs(event) do told[name] = value end
          opts.on_progress(told)
        end)
      end
    end
    files[layer.digest] = path
  end
  task.all(work)
  local path = file_name(opts.dir, self.config_digest)
  if not core.fs.stat(path) then core.fs.write(path, self.config_text) end
  files[self.config_digest] = path
  self.files = files
  return self
end

return M
