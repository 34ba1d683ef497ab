--- `engine.images`: finding images, listing them, bringing them in.

local core = require "bough.core"
local check = require "bough.check"
local errors = require "bough.error"
local image = require "bough.image"
local platform = require "bough.platform"
local progress = require "bough.progress"
local source = require "bough.source"

local M = {}

local raise, quote = errors.raise, errors.quote

local PAGE = 100

local CONTEXT = {}

---@class bough.images
---@overload fun(filter: bough.filter?): bough.image[]
local methods = {}

---@class bough.filter
---@field tag string? exact, or with * and ? a pattern
---@field tagged boolean? only images that have a tag
---@field first string? the image with this tag comes before all others
---@field uuid string? how the uuid begins
---@field parent string|bough.image|nil children of this image
---@field since number|string|{ ago: number }|nil from this time on: seconds since the epoch, or back from now
---@field before number|string|{ ago: number }|nil before this time
---@field number number? how many at most, newest first; default 100, math.huge for all
---@field offset integer? so many are left out at the beginning
---@field oldest_first boolean?

local filter_keys = {
  "tag", "tagged", "first", "uuid", "parent", "since", "before", "until", "number", "offset", "oldest_first",
}

local function context_of(self, op)
  local context = type(self) == "table" and rawget(self, CONTEXT)
  if not context then
    raise("invalid", op, "called on %s instead of engine.images: write engine.images:%s(...)",
      quote(self), op)
  end
  return context
end

local function checked(filter, op)
  filter = errors.check_keys(op, filter, filter_keys)
  local row_filter = {
    tagged = check.boolean(filter.tagged, op, "tagged"),
    oldest_first = check.boolean(filter.oldest_first, op, "oldest_first"),
    since = check.moment(filter.since, op, "since"),
    before = check.moment(filter.before, op, "before"),
    brief = true,
  }
  if filter["until"] ~= nil then
    if filter.before ~= nil then raise("invalid", op, 'before and ["until"] are the same: use one') end
    row_filter.before = check.moment(filter["until"], op, "until")
  end
  if filter.tag ~= nil then
    local tag = check.tag(filter.tag, op)
    row_filter[tag:find("[*?]") and "tag_glob" or "tag"] = tag
  end
  row_filter.tag_first = check.tag(filter.first, op)
  local uuid = filter.uuid
  if uuid ~= nil then
    if type(uuid) ~= "string" or #uuid > 36 or uuid:find "[^%x-]" then
      raise("invalid", op, "uuid must be the beginning of one, got %s", quote(uuid))
    end
    row_filter.uuid_prefix = uuid:lower()
  end
  local parent = filter.parent
  if image.is(parent) then parent = parent.uuid end
  if parent ~= nil then
    if type(parent) ~= "string" or not check.is_uuid(parent) then
      raise("invalid", op, "parent must be an image or its uuid, got %s", quote(filter.parent))
    end
    row_filter.parent = parent:lower()
  end
  local number = filter.number
  if number == nil then number = PAGE end
  if number ~= math.huge then
    local whole = type(number) == "number" and math.tointeger(number)
    if not whole or whole < 1 then
      raise("invalid", op, "number must be a positive integer or math.huge, got %s", quote(number))
    end
    number = whole
  end
  row_filter.offset = check.count(filter.offset, op, "offset", 0)
  if row_filter.offset == math.huge then raise("invalid", op, "offset must be a whole number") end
  return row_filter, number
end

--- The images of the store, newest first. Waits.
---@param filter bough.filter?
---@return bough.image[]
function methods:list(filter)
  local context = context_of(self, "list")
  local row_filter, number = checked(filter, "list")
  if number ~= math.huge then row_filter.limit = number end
  local images = context:handle("list"):list(row_filter)
  for i, row in ipairs(images) do images[i] = image.new(context, row, true) end
  return images
end

--- Iterates over images, fetching a page at a time: nothing more is asked for after a `break`. Images
--- made meanwhile do not turn up. Default: all. Waits.
---@param filter bough.filter?
---@return fun(): bough.image?
function methods:iter(filter)
  local context = context_of(self, "iter")
  local row_filter, number = checked(filter, "iter")
  if filter == nil or filter.number == nil then number = math.huge end
  local rows, at, given, finished = {}, 0, 0, false
  local offset = row_filter.offset or 0
  return function()
    if given >= number then return nil end
    at = at + 1
    if rows[at] == nil then
      if finished then return nil end
      row_filter.limit, row_filter.offset = PAGE, offset + given
      rows, at = context:handle("iter"):list(row_filter), 1
      finished = #rows < PAGE
      if given == 0 and offset == 0 and rows[1] and not row_filter.before and not row_filter.oldest_first
        and not row_filter.tag_first then
        row_filter.before = rows[1].created_at + 1e-6 -- what comes later would shift the pages
      end
      if rows[1] == nil then return nil end
    end
    given = given + 1
    return image.new(context, rows[at], true)
  end
end

local function reference(ref, op)
  if image.is(ref) then ref = ref.uuid end
  if type(ref) ~= "string" then
    raise("invalid", op, "expected a tag or a uuid, got %s", quote(ref))
  end
  if ref == "" or ref:find("[%c]") then
    raise("invalid", op, "%s is neither a tag nor a uuid", quote(ref))
  end
  return check.is_uuid(ref) and ref:lower() or ref
end

local function missing(handle, ref, op)
  local tags = {}
  for _, row in ipairs(handle:list { tagged = true, limit = 500, brief = true }) do
    tags[#tags + 1] = row.tag
  end
  local near = errors.nearest(ref, tags)
  if near then raise("not_found", op, "no image %s: did you mean %s?", quote(ref), quote(near)) end
  raise("not_found", op, "no image %s: it is no tag, uuid, directory or archive", quote(ref))
end

--- The image with this tag or uuid. Waits. Raises `not_found`.
---@param ref string
---@return bough.image
function methods:get(ref)
  local context = context_of(self, "get")
  ref = reference(ref, "get")
  local handle = context:handle("get")
  local row = handle:resolve(ref)
  if not row then missing(handle, ref, "get") end
  return image.new(context, row)
end

---@class bough.import_options
---@field tag (string|false)? default for images from a registry: the name they have there; false: none
---@field max_bytes (integer|string)? larger trees raise `resource`; of layers, those count that have to be
---  unpacked, not those that the store has already
---@field max_files integer? trees of more files raise `resource`; of layers, as with max_bytes
---@field format string? what the path holds, where that is not to be found out: "directory", "tarball",
---  "oci", "oci-archive", "docker-archive"; "registry": it is no path but a name in a registry
---@field platform string? "linux/arm64": of an image for several, this one, instead of this machine's
---@field username string? for a registry; default: what `docker login` stored
---@field password string?
---@field anonymous boolean? without username and password, and without what `docker login` stored
---@field insecure boolean? a registry without TLS, or with a certificate that nobody vouches for
---@field outside boolean? a registry that turns out to be this machine, or sends us on to it, raises `denied`; proxies
---  are exempt
---@field timeout number? seconds, for all of it
---@field on_progress fun(event: bough.progress_event)?

local import_keys = {
  "tag", "max_bytes", "max_files", "format", "platform", "username", "password", "anonymous", "insecure",
  "outside", "timeout", "on_progress",
}
local use_keys = { "strict", table.unpack(import_keys) }

local function credential(value, op, name)
  if value ~= nil and (type(value) ~= "string" or value == "" or value:find("[%c]")) then
    raise("invalid", op, "%s must be a string without control characters", name) -- never shown
  end
  return value
end

local function import_options(opts, op, known)
  opts = errors.check_keys(op, opts, known)
  local max_files = opts.max_files
  if max_files ~= nil and (math.type(max_files) ~= "integer" or max_files < 1) then
    raise("invalid", op, "max_files must be a positive integer, got %s", quote(max_files))
  end
  local all = {
    op = op, tag = opts.tag and check.tag(opts.tag, op),
    max_bytes = opts.max_bytes ~= nil and check.size(opts.max_bytes, op, "max_bytes", 1) or nil,
    max_files = max_files, format = opts.format,
    platform = opts.platform ~= nil and platform.parse(opts.platform, op) or nil,
    username = credential(opts.username, op, "username"),
    password = credential(opts.password, op, "password"),
    anonymous = check.boolean(opts.anonymous, op, "anonymous"),
    insecure = check.boolean(opts.insecure, op, "insecure"),
    outside = check.boolean(opts.outside, op, "outside"),
    timeout = check.timeout(opts.timeout, op),
    on_progress = check.foreign(check.callback(opts.on_progress, op, "on_progress")),
  }
  if (all.username == nil) ~= (all.password == nil) then
    raise("invalid", op, "username and password go together: %s is missing",
      all.username and "password" or "username")
  elseif all.username and all.anonymous then
    raise("invalid", op, "username and anonymous exclude each other")
  end
  return all
end

-- What has no meaning for this kind of source must not be passed over in silence.
local function check_meaning(name, opts, op)
  local kind = name.kind
  if kind ~= "registry" then
    for _, key in ipairs { "username", "anonymous", "insecure", "outside" } do
      if opts[key] then raise("invalid", op, "%s: %s is no registry", key, quote(name.text)) end
    end
  end
  if opts.platform and (kind == "busybox" or kind == "directory" or kind == "tarball") then
    raise("invalid", op, "platform: %s says nothing of platforms", quote(name.text))
  end
end

-- The engine brings the program and a shell; its other names it makes itself.
local function busybox(context, handle, opts)
  local job <close> = handle:import("busybox", nil, {}) -- until it is closed, no gc takes its image
  local row = progress.follow(job, opts.on_progress, { op = "import", item = "busybox" })
  return image.new(context, row):run { "/bin/busybox", "--install", "-s", tag = opts.tag or nil, check = true }
end

local function bring_now(context, handle, name, opts)
  if name.kind == "busybox" then return busybox(context, handle, opts) end
  return image.new(context, source.bring(handle, name, opts))
end

local function bring(context, handle, name, opts)
  check_meaning(name, opts, opts.op)
  local timeout = opts.timeout
  -- one that fetches images itself keeps the time itself
  if not timeout or timeout == math.huge or handle.import_reference then
    return bring_now(context, handle, name, opts)
  end
  return core.deadline(timeout, bring_now, context, handle, name, opts)
end

--- Brings an image in: `"busybox"` (the machine's own); a directory or a tarball with a root file system
--- (plain, gzip, xz, zstd); what `docker save` wrote; an OCI layout, as a directory or a tar; or one from a
--- registry, `"docker.io/library/debian:12"`. `"oci:path:name"`, `"oci-archive:path:name"` and
--- `"docker-archive:path:name"` pick one image of several. Waits. Raises `not_found` naming what is missing,
--- `corrupt` for what is broken.
---@param text string
---@param opts bough.import_options?
---@return bough.image
function methods:import(text, opts)
  local context = context_of(self, "import")
  opts = import_options(opts, "import", import_keys)
  if type(text) ~= "string" or text == "" or text:find("\0", 1, true) then
    raise("invalid", "import", 'expected "busybox", a path or an image in a registry, got %s', quote(text))
  end
  if check.is_uuid(text) then
    raise("invalid", "import", "%s is a uuid: images:get finds images that are here already", text)
  end
  local handle = context:handle("import")
  local name, trouble = source.find(text, "import", opts.format)
  if not name then source.missing(text, "import", trouble) end
  if opts.tag == nil then opts.tag = source.own_tag(name, "import") end
  return bring(context, handle, name, opts)
end

--- The image to start from: a tag or uuid that is here; `"busybox"`, built on first use from the
--- machine's own; or whatever `import` takes. With `tag`, and from a registry, the import is done once and
--- found again. Waits.
---@param ref string
---@param opts bough.import_options|{ strict: boolean? }|nil strict: only what is here already
---@return bough.image
function methods:use(ref, opts)
  local context = context_of(self, "use")
  if image.is(ref) then
    if ref.engine ~= context.engine then
      raise("invalid", "use", "%s belongs to another engine", tostring(ref))
    end
    return ref
  end
  ref = reference(ref, "use")
  local strict = check.boolean(type(opts) == "table" and opts.strict or nil, "use", "strict")
  opts = import_options(opts, "use", use_keys)
  local handle = context:handle("use")

  -- one at a time: two tasks that want busybox get the same one
  context.importing = context.importing or core.queue()
  local row = handle:resolve(opts.tag or ref)
  if row then return image.new(context, row) end
  local name, trouble
  if not check.is_uuid(ref) then name, trouble = source.find(ref, "use", opts.format) end
  if not name and trouble and trouble.kind == "denied" and not strict then
    source.missing(ref, "import", trouble)
  end
  local tag = opts.tag or name and (source.own_tag(name, "use") or (name.kind == "busybox" and ref)) or nil
  if tag and tag ~= ref then row = handle:resolve(tag) end
  if row then return image.new(context, row) end
  if strict or not name then missing(handle, ref, "use") end
  if name.kind == "busybox" and handle.import_reference then
    raise("not_found", "use", "no image %s, and this engine makes none: images:import(%s, { tag = %s }) brings it",
      quote(tag), quote "docker.io/library/busybox", quote(tag))
  end
  local _ <close> = context.importing:acquire()
  row = handle:resolve(tag or ref)
  if row then return image.new(context, row) end
  opts.op, opts.tag = "import", tag
  return bring(context, handle, name, opts)
end

--- Drops an image from the store; refused (kind `state`) while it has children or a tag. Waits.
---@param ref string
function methods:remove(ref) self:get(ref):remove() end

local meta = {
  __name = "bough.images",
  __index = methods,
  __call = function(self, filter) return self:list(filter) end,
  __tostring = function(self)
    return ("images of %s"):format(tostring(rawget(self, CONTEXT).engine))
  end,
}

function meta.__newindex(_, name)
  raise("invalid", nil, "images.%s: fields of engine.images cannot be set", tostring(name))
end

--- Makes `engine.images`.
---@param context bough.context
---@return bough.images
function M.new(context)
  return setmetatable({ [CONTEXT] = context }, meta)
end

return M
