--- Opening engines, and the engine object.
--
-- An engine's *driver* is the object that does the work: the core's `bough.local` userdata, or whatever a
-- function in `M.schemes` returns for its URL. A driver has resolve, list, import, tag, untag, remove,
-- start, read, list_dir, info, gc and close, and may have more (stage and put_files, open, save, extract,
-- look, cached, upload, compact, popen, ...): what it lacks is refused with kind `unsupported`, or done by
-- simpler means.

local core = require "bough.core"
local check = require "bough.check"
local draw = require "bough.draw"
local errors = require "bough.error"
local image = require "bough.image"
local instance = require "bough.instance"
local images = require "bough.images"
local progress = require "bough.progress"
local uploads = require "bough.uploads"

local M = {}

local raise, quote = errors.raise, errors.quote

local CONTEXT = {}

local open_keys = { "home", "keeper", "spare", "limits" }

--- URL scheme -> function(rest, opts) that returns a driver. Engines written in Lua add theirs here, and
--- the specs a fake one.
---@type table<string, fun(rest: string, opts: table): table|userdata>
M.schemes = {}

M.schemes["local"] = function(rest, opts)
  opts = errors.check_keys("open", opts, open_keys)
  local home = opts.home
  if rest ~= "" then
    if home ~= nil and home ~= rest then
      raise("invalid", "open", "two stores given: %s and home = %s", quote(rest), quote(home))
    end
    home = rest
  end
  for name, value in pairs { home = home, keeper = opts.keeper } do
    if type(value) ~= "string" or value == "" or value:find("\0", 1, true) then
      raise("invalid", "open", "%s must be a path, got %s", name, quote(value))
    end
  end
  local spare = opts.spare
  if spare ~= nil and (math.type(spare) ~= "integer" or spare < 0) then
    raise("invalid", "open", "spare must be a number of sandboxes, got %s", quote(spare))
  end
  return core.open_local {
    home = home, keeper = opts.keeper, spare = spare, limits = check.limits(opts.limits, "open"),
  }
end

-- Over HTTP: loaded with the first that is opened.
for _, scheme in ipairs { "contree", "https", "http" } do
  M.schemes[scheme] = function(rest, opts) return require("bough.contree").open(scheme, rest, opts) end
end

local planned = { docker = true, podman = true }

-- What the objects of one engine share.
---@class bough.context
---@field engine bough.engine
---@field sessions table<bough.session, boolean> live ones, weakly
---@field running table<bough.image, string> started runs and the images they run in, weakly
---@field instances table<bough.instance, boolean> those not collected, weakly
local context_methods = {}
context_methods.__index = context_methods

-- The driver, or kind `closed`.
function context_methods:handle(op)
  if not self.driver then raise("closed", op, "the engine is closed") end
  return self.driver
end

---@class bough.engine
---@field images bough.images
---@field files bough.files
---@field instances bough.instances
---@field url string what it was opened with
---@field closed boolean
local methods = {}
local meta = { __name = "bough.engine" }

local function context_of(self, op)
  local context = type(self) == "table" and rawget(self, CONTEXT)
  if not context then
    raise("invalid", op, "called on %s instead of an engine: write engine:%s(...)", quote(self), op)
  end
  return context
end

--- A session that starts from an image. Waits, unless given the image itself.
---@param ref string|bough.image tag, uuid, or whatever `images:use` takes
---@param defaults table? options under those of each run
---@return bough.session
function methods:session(ref, defaults)
  local context = context_of(self, "session")
  context:handle("session")
  return context.images:use(ref):session(defaults)
end

--- What the engine is and has: sizes, limits in force, ... Waits.
---@param opts table? of engines over HTTP: { refresh = true } asks again for what is remembered
---@return table
function methods:info(opts) return context_of(self, "info"):handle("info"):info(opts) end

-- The images that live sessions stand on or could go back to, and those that commands run in.
local function in_use(context)
  local keep, seen = {}, {}
  local function add(uuid)
    if uuid and not seen[uuid] then
      seen[uuid] = true
      keep[#keep + 1] = uuid
    end
  end
  for session in pairs(context.sessions) do
    if session.state ~= "closed" then
      add(session.uuid)
      for _, step in ipairs(session:history()) do add(step.uuid) end
    end
  end
  for _, uuid in pairs(context.running) do add(uuid) end
  for running in pairs(context.instances) do
    if running.state ~= "closed" then add(running.uuid) end
  end
  return keep
end

--- Drops every image that no tag, session or kept descendant needs. Waits.
---@param opts { dry: boolean? }? dry: only tell what would go
---@return { images: integer, layers: integer, bytes: integer }
function methods:gc(opts)
  local context = context_of(self, "gc")
  opts = errors.check_keys("gc", opts, { "dry" })
  local dry = check.boolean(opts.dry, "gc", "dry") or false
  return context:handle("gc"):gc(in_use(context), dry)
end

-- The uuid of an image, or of what a tag or uuid names.
local function uuid_of(context, ref, op)
  if not image.is(ref) then ref = check.named(op, context.images.get, context.images, ref) end
  if ref.engine ~= context.engine then
    raise("invalid", op, "%s belongs to another engine", tostring(ref))
  end
  if not ref.uuid then raise("disposed", op, "%s is not in the store", tostring(ref)) end
  return ref.uuid
end

--- The images as a tree of text, each under what it was made from: tag, exit code, size of its own layer,
--- command. Waits.
---@param opts { root: string|bough.image|nil, max: number?, all: boolean?, ascii: boolean? }? root: only this
---  image and what came of it; max: how many are drawn, default 500; all: no such limit; ascii: plain signs
---@return string
function methods:tree(opts)
  local context = context_of(self, "tree")
  local handle = context:handle("tree")
  opts = errors.check_keys("tree", opts, { "root", "max", "all", "ascii" })
  local max = check.count(opts.max, "tree", "max", 1) or 500
  if check.boolean(opts.all, "tree", "all") then max = math.huge end
  local root = opts.root ~= nil and uuid_of(context, opts.root, "tree") or nil
  local rows = handle:list { brief = true, oldest_first = true, lineage = true }
  return draw.tree(rows, {
    root = root, max = max, ascii = check.boolean(opts.ascii, "tree", "ascii"),
    complete = handle.complete and function(drawn) handle:complete(drawn) end,
  })
end

-- Those that nothing was made from: what they stand on, all others stand on too.
local function leaves(handle)
  local rows, has_child = handle:list { brief = true }, {}
  for _, row in ipairs(rows) do
    if row.parent_uuid then has_child[row.parent_uuid] = true end
  end
  local uuids = {}
  for _, row in ipairs(rows) do
    if not has_child[row.uuid] then uuids[#uuids + 1] = row.uuid end
  end
  return uuids
end

--- Merges layers now that would be merged in the background, of one image or of all, and waits for it. Images
--- stay what they are. Waits.
---@param ref string|bough.image|nil
---@param opts { on_progress: fun(event: bough.progress_event)? }?
---@return { merged: integer }
function methods:compact(ref, opts)
  local context = context_of(self, "compact")
  if type(ref) == "table" and not image.is(ref) and opts == nil then ref, opts = nil, ref end
  opts = errors.check_keys("compact", opts, { "on_progress" })
  local on_progress = check.callback(opts.on_progress, "compact", "on_progress")
  local handle = context:handle("compact")
  if handle.never_compacts then raise("unsupported", "compact", "%s", handle.never_compacts) end
  if not handle.compact then return { merged = 0 } end
  local uuids = ref == nil and leaves(handle) or { uuid_of(context, ref, "compact") }
  local merged = 0
  for _, uuid in ipairs(uuids) do
    local event = { op = "compact", item = uuid, unit = "merges" }
    merged = merged + progress.follow(handle:compact(uuid), on_progress, event).merged
  end
  return { merged = merged }
end

--- Ends the engine: sessions and runs in it end, later calls raise kind `closed`. Twice does nothing.
function methods:close()
  local context = context_of(self, "close")
  local driver = context.driver
  if not driver then return end
  local live = {}
  for session in pairs(context.sessions) do live[#live + 1] = session end
  for started in pairs(context.running) do live[#live + 1] = started end
  for running in pairs(context.instances) do live[#live + 1] = running end
  local trouble
  for _, object in ipairs(live) do
    local good, problem = pcall(object.close, object)
    if not good then trouble = trouble or problem end
  end
  context.driver = nil
  driver:close()
  if trouble then error(trouble, 0) end
end

function meta:__index(name)
  local method = methods[name]
  if method then return method end
  local context = rawget(self, CONTEXT)
  if name == "images" then return context.images end
  if name == "files" then return context.files end
  if name == "instances" then return context.instance_manager end
  if name == "url" then return context.url end
  if name == "closed" then return context.driver == nil end
  return nil
end

function meta.__newindex(_, name)
  raise("invalid", nil, "engine.%s: fields of an engine cannot be set", tostring(name))
end

function meta:__tostring()
  local context = rawget(self, CONTEXT)
  return ("engine %s%s"):format(quote(context.url), context.driver and "" or " (closed)")
end

-- No __gc here: the driver owns the keeper and has its own, and a finaliser must not wait.
meta.__close = function(self) methods.close(self) end

local function wrap(driver, url)
  local context = setmetatable({
    driver = driver,
    url = url,
    sessions = setmetatable({}, { __mode = "k" }),
    running = setmetatable({}, { __mode = "k" }),
    instances = setmetatable({}, { __mode = "k" }),
  }, context_methods)
  context.instance_manager = instance.manager(context)
  context.images = images.new(context)
  context.files = uploads.new(context)
  context.engine = setmetatable({ [CONTEXT] = context }, meta)
  return context.engine
end

local function scheme_list()
  local names = {}
  for name in pairs(M.schemes) do names[#names + 1] = name .. "://" end
  table.sort(names)
  return table.concat(names, ", ")
end

--- Opens an engine. Waits.
---@param url string|table|nil nil, "local", "local:///store" or a path: the embedded one; a table: options for that;
---  "contree://", "contree://profile", "https://host/path": a ConTree service (contree.lua has the options)
---@param opts { home: string?, keeper: string?, spare: integer?, limits: table? }? home: where the store is;
---  keeper: path of bough-keeper; spare: sandboxes kept ready; limits: for runs that give none
---@return bough.engine
function M.open(url, opts)
  if type(url) == "table" and opts == nil then url, opts = nil, url end
  if url == nil then url = "local" end
  if type(url) ~= "string" or url == "" then
    raise("invalid", "open", 'expected a URL such as "local://" or the path of a store, got %s', quote(url))
  end
  local scheme, rest = url:match("^([%a][%w+.-]*)://(.*)$")
  if not scheme then
    if url == "local" then
      scheme, rest = "local", ""
    elseif url:find("/", 1, true) then
      scheme, rest = "local", url
    else
      raise("invalid", "open", '%s is no engine: write "local", or "./%s" for a store in that directory',
        quote(url), url)
    end
  end
  local opener = M.schemes[scheme:lower()]
  if not opener then
    raise("unsupported", "open", "%s: %s: known are %s", quote(url), planned[scheme:lower()]
      and "this engine is not available yet" or "no such engine", scheme_list())
  end
  return wrap(opener(rest, opts or {}), url)
end

return M
