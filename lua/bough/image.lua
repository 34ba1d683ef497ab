--- Immutable images: a file tree with the result of the run that made it.
--
-- An image is an empty table in front of private data, so that assigning to any field can be refused.
-- `start` gives an image that is still in the making (state "executing"); `wait` finishes it in place,
-- and it never changes again.

local core = require "bough.core"
local cache = require "bough.cache"
local check = require "bough.check"
local defaults = require "bough.defaults"
local errors = require "bough.error"
local files = require "bough.files"
local inside = require "bough.inside"
local instance = require "bough.instance"
local live = require "bough.live"
local options = require "bough.options"
local progress = require "bough.progress"

local M = {}

local raise, quote = errors.raise, errors.quote

local DATA = {} -- key of the private data, which nobody outside this file holds

---@class bough.image
---@field uuid string? nil for disposable runs and while executing
---@field tag string?
---@field parent_uuid string?
---@field created_at number? seconds since the epoch
---@field state "pulled"|"executing"|"succeeded"|"failed"
---@field origin string? "run", "import", "files", "commit"
---@field command string? one line, what made it
---@field size integer? bytes this image adds to its parent
---@field depth integer?
---@field stdin any the configured source
---@field config bough.image_defaults what runs get that do not say otherwise; a fresh table each time
---@field cached boolean? of a run with `cache = true`: whether an earlier one stands for it
---@field result bough.result a fresh table each time; raises `state` before there is one
---@field exit_code integer raises `state` before there is one, as do all below
---@field signal integer?
---@field timed_out boolean
---@field ok boolean exit code 0
---@field stdout string?
---@field stderr string?
---@field elapsed_time number seconds
---@field engine bough.engine
local methods = {}
local fields = {}
local meta = { __name = "bough.image" }

local function data_of(self, op)
  local data = type(self) == "table" and rawget(self, DATA)
  if not data then
    raise("invalid", op, "called on %s instead of an image: write image:%s(...)", quote(self), op)
  end
  return data
end

-- The engine's handle and the uuid to give it.
local function located(self, op)
  local data = data_of(self, op)
  local handle = data.context:handle(op)
  if data.state == "executing" then
    raise("state", op, "the run has not finished: call wait() first")
  end
  local uuid = data.row.uuid
  if not uuid then
    if data.failure and not data.row.result then
      raise("state", op, "the run failed and left no image: %s", data.failure.message)
    end
    raise("disposed", op, "the run was disposable and left no image: run it without disposable")
  end
  return handle, uuid, data
end

inside.add(methods, located)

local function copy(value)
  if type(value) ~= "table" then return value end
  local all = {}
  for name, inner in pairs(value) do all[name] = copy(inner) end
  return all
end

local heavy = { result = true, stdout = true, stderr = true } -- what a brief row lacks

local bare = { uuid = true, tag = true, created_at = true } -- what a partial row has

-- The row; a partial one is made whole when it lacks what is asked for.
local function row_with(data, name)
  local row = data.row
  if not row.partial or row[name] ~= nil or bare[name] then return row end
  data.context:handle("image." .. name):complete { row }
  data.state = row.result and "succeeded" or "pulled"
  return row
end

local function result_of(data, name)
  if data.state == "executing" then
    raise("state", nil, "image.%s: the run has not finished: call wait() first", name)
  end
  row_with(data, "result")
  if data.brief and heavy[name] then
    local row = data.context:handle("image." .. name):resolve(data.row.uuid)
    if not row then
      raise("not_found", nil, "image.%s: image %s is gone", name, data.row.uuid)
    end
    data.row.result, data.brief = row.result, nil
    data.row.result.cached = data.cached
  end
  local result = data.row.result
  if not result then
    if data.failure then
      raise("state", nil, "image.%s: the run failed: %s", name, data.failure.message)
    end
    raise("state", nil, "image.%s: no run made this image, so it has no result", name)
  end
  return result
end

for _, name in ipairs { "uuid", "tag", "parent_uuid", "created_at", "origin", "command", "size", "depth" } do
  fields[name] = function(data) return row_with(data, name)[name] end
end
for _, name in ipairs { "exit_code", "signal", "timed_out", "stdout", "stderr", "elapsed_time", "ok" } do
  fields[name] = function(data) return result_of(data, name)[name] end
end
function fields.result(data) return copy(result_of(data, "result")) end
function fields.cached(data) return data.cached end
function fields.state(data)
  row_with(data, "result")
  return data.state
end
-- of one whose sandbox hosts live processes: the last that anybody wants has ended, its image is in the making
function fields.settling(data)
  local sandbox = data.state == "executing" and data.sandbox
  return sandbox and (not sandbox.hosts or sandbox.wanted == 0) or false
end
-- and what it runs, in words
function fields.hosting(data)
  local sandbox = data.state == "executing" and data.sandbox
  if not sandbox then return nil end
  local others = sandbox.live - 1
  return quote(data.label) .. (others > 0 and (" and %d more"):format(others) or "")
end
function fields.stdin(data) return data.stdin end
function fields.engine(data) return data.context.engine end

local function defaults_of(data)
  data.defaults = data.defaults or defaults.read(data.row.config)
  return data.defaults
end

function fields.config(data) return copy(defaults_of(data)) end

local function new(context, data)
  data.context = context
  return setmetatable({ [DATA] = data }, meta)
end

--- Makes an image object from an engine's row.
---@param context bough.context
---@param row table
---@param brief boolean? the row lacks outputs: they are fetched when asked for, as is what a row with `partial` lacks
---@return bough.image
function M.new(context, row, brief)
  return new(context, {
    row = row,
    state = row.result and "succeeded" or "pulled",
    brief = brief and row.result and true or nil,
  })
end

--- Whether `value` is an image.
---@param value any
---@return boolean
function M.is(value)
  return type(value) == "table" and rawget(value, DATA) ~= nil
end

-- A run is settled once: it has a row or a failure, and whoever was told of its end has been told.
local function settle(self, data, row, failure)
  if data.state ~= "executing" then return end
  data.run, data.sandbox = nil, nil
  row = row or {}
  row.config = row.config or data.row.config
  if row.result then row.result.cached = data.cached end
  data.row = row
  data.failure = failure
  data.state = failure and "failed" or "succeeded"
  data.context.running[self] = nil
  local on_done = data.on_done
  data.on_done = nil
  if on_done then on_done(self, failure == nil) end
end

-- What `check = true` makes of a result: nil when the command did well.
local function complaint(self, data, row)
  local result = row.result
  if result.ok then return nil end
  local op = ("%s %s"):format(data.op, quote(data.label))
  local details = { result = copy(result), command = data.label }
  if row.uuid then details.image = self end
  if result.timed_out then
    return errors.new("timeout", op, details, "stopped at its time limit of %g s", data.timeout or 0)
  end
  return errors.new("exit", op, details, "%s", errors.ending(result))
end

-- The image of an earlier run, for one with `cache = true`; at once, but for a session, which is told of its
-- runs by their `wait`.
local function remembered(data, row, spec, begun)
  local handle = data.context:handle(begun.op)
  if spec.tag then
    handle:tag(row.uuid, spec.tag)
    row.tag = spec.tag
  end
  begun.cached = true
  if begun.on_done then
    begun.state, begun.tag_later = "executing", nil
    begun.run = { wait = function() return row end, close = function() end }
  else
    begun.state, begun.row = "succeeded", row
    row.config = row.config or data.row.config
    if row.result then row.result.cached = true end
  end
  local image = new(data.context, begun)
  if begun.on_done then data.context.running[image] = row.uuid end
  return image
end

local held_meta = { __close = function(self) self.running[self] = nil end }

-- Keeps gc away from an image until the value is closed.
local function hold(context, uuid)
  local held = setmetatable({ running = context.running, close = function() end }, held_meta)
  context.running[held] = uuid
  return held
end

-- What an engine cannot do is refused before anything is asked of it, its files included.
local function admit(handle, spec, op)
  if handle.check then
    handle:check(spec, op)
  elseif spec.network == "nat" then
    raise("unsupported", op, 'network = "nat": this engine has none yet, use "none" or "host"')
  end
end

-- Starts what `spec` says, with its files and the cache.
local function launch(handle, uuid, data, spec, begun)
  local _ <close> = hold(data.context, uuid)
  local plan, wants_cache = spec.files, spec.cache
  spec.files, spec.cache = nil, nil
  local staged <close> = plan and files.stage(handle, plan, begun.op, spec.on_progress) or nil
  spec.files = staged
  if wants_cache then
    local key = cache.key(uuid, spec, staged and staged.digest, begun.op)
    local row = handle:cached(key)
    if row then return remembered(data, row, spec, begun) end
    spec.cache_key, begun.cached = key, false
  end
  -- with `check` a failed run is an error, and an error moves no tag
  begun.tag_later = begun.check and spec.tag or nil
  if begun.tag_later then spec.tag = nil end
  -- a terminal is for processes that are started one by one, in a sandbox that is there
  begun.run = spec.pty and live.run(handle:boot(uuid, live.sandbox_of(spec, true)), spec)
    or handle:start(uuid, spec)
  local started = new(data.context, begun)
  data.context.running[started] = uuid
  return started
end

--- Begins a run and returns at once, with an image in state "executing". Waits only until the files are in
--- place and the command has started. Raises what `run` raises before a command runs. With `cache = true`
--- an earlier run that went well stands for the same one: its image comes back, finished.
---@param command string|table
---@param opts table? with a shell line
---@param within { op: string, defaults: table?, on_done: fun(image: bough.image, ok: boolean)? }? for
---  sessions: the name for messages, the options under these, and whom to tell of the end, once
---@return bough.image
function methods:start(command, opts, within)
  local op = within and within.op or "start"
  local handle, uuid, data = located(self, op)
  local spec, policy = options.spec(command, opts, {
    op = op, defaults = within and within.defaults, image = data.row.config and defaults_of(data) or nil,
  })
  if spec.files and not handle.stage then
    raise("unsupported", op, "files: this engine cannot put files in place yet")
  elseif spec.pty and not handle.boot then
    raise("unsupported", op, "pty: this engine has no terminals yet")
  elseif spec.cache and not handle.cached then
    raise("unsupported", op, "cache: this engine keeps no run cache yet")
  end
  admit(handle, spec, op)
  -- whoever runs waits for the end next: its start need not be told apart, and its failure is as good there
  spec.eager = op == "run"
  return launch(handle, uuid, data, spec, {
    state = "executing", op = op, label = spec.command, timeout = spec.timeout, check = policy.check,
    row = { parent_uuid = uuid, command = spec.command, config = data.row.config },
    stdin = spec.stdin, on_done = within and within.on_done,
  })
end

--- Runs a command in this image and returns the image that it left. Waits. A non-zero exit, a signal and
--- the time limit are results; with `check` they raise kind `exit` or `timeout`.
---@param command string|table shell line, or options with the command in the array part
---@param opts table? with a shell line
---@return bough.image
function methods:run(command, opts)
  -- closed on every way out: a cancelled wait must not leave the command running
  local started <close> = methods.start(self, command, opts, { op = "run" })
  return started:wait()
end

--- Waits for the end of a started run; on a finished one returns at once. Repeatable: every call returns
--- or raises the same.
---@return bough.image self
function methods:wait()
  local data = data_of(self, "wait")
  if data.state == "executing" then
    local good, row = pcall(data.run.wait, data.run)
    if data.state == "executing" then
      if not good then
        -- the waiter's own cancellation or deadline says nothing about the run
        if errors.is(row, "cancelled") or errors.is(row, "timeout") then error(row, 0) end
        settle(self, data, nil, row)
      else
        local failure = data.check and complaint(self, data, row) or nil
        if data.tag_later and not failure and row.uuid then
          data.context.running[self] = row.uuid -- from here on gc asks us
          data.context:handle("wait"):tag(row.uuid, data.tag_later)
          row.tag = data.tag_later
        end
        settle(self, data, row, failure)
      end
    end
  end
  if data.failure then error(data.failure, 0) end
  if data.state == "pulled" then
    raise("state", "wait", "no run made this image, so there is nothing to wait for")
  end
  return self
end

--- Kills a run that is executing; anybody waiting gets kind `cancelled`. Does nothing otherwise.
function methods:close()
  local data = data_of(self, "close")
  if data.state ~= "executing" then return end
  local run = data.run
  data.closed = true
  settle(self, data, nil, errors.new("cancelled", data.op, nil, "closed before it finished: %s",
    data.label))
  run:close()
end

--- A session that starts from this image.
---@param given table? options under those of each run; `queue = true` lines up concurrent runs
---@return bough.session
function methods:session(given)
  local data = select(3, located(self, "session"))
  local checked = options.defaults(given, "session")
  local session = core.session(data.context.engine, self, checked)
  data.context.sessions[session] = true
  return session
end

local function retagged(data, tag)
  local twin = {}
  for name, value in pairs(data) do twin[name] = value end
  twin.row = {}
  for name, value in pairs(data.row) do twin.row[name] = value end
  twin.row.tag = tag
  return new(data.context, twin)
end

--- The same image without its outputs, which are fetched again when asked for. For long histories.
---@return bough.image
function methods:brief()
  local data = data_of(self, "brief")
  local result = data.row.result
  if data.brief or not result or not data.row.uuid or data.state == "executing" then return self end
  if #(result.stdout or "") + #(result.stderr or "") < 1024 then return self end
  local twin = retagged(data, data.row.tag)
  local slim = rawget(twin, DATA)
  slim.row.result = copy(result)
  slim.row.result.stdout, slim.row.result.stderr, slim.brief = nil, nil, true
  return twin
end

--- Names the image; the tag leaves the image that had it. Waits.
---@param tag string? nil removes all tags, as `untag`
---@return bough.image image the same one, with that tag
function methods:tag_as(tag)
  if tag == nil then return self:untag() end
  tag = check.tag(tag, "tag_as")
  local handle, uuid, data = located(self, "tag_as")
  handle:tag(uuid, tag)
  return retagged(data, tag)
end

--- Removes the image's tags. Waits.
---@return bough.image image the same one, without
function methods:untag()
  local handle, uuid, data = located(self, "untag")
  handle:untag(uuid)
  return retagged(data, nil)
end

--- Drops the image from the store; refused (kind `state`) while it has children or a tag. Waits.
function methods:remove()
  local handle, uuid = located(self, "remove")
  handle:remove(uuid)
end

--- The image this one was made from, or nil. Waits.
---@return bough.image?
function methods:parent()
  local handle, _, data = located(self, "parent")
  local parent = row_with(data, "parent_uuid").parent_uuid
  local row = parent and handle:resolve(parent)
  return row and M.new(data.context, row) or nil
end

--- The images made from this one, oldest first. Waits.
---@return bough.image[]
function methods:children()
  local handle, uuid, data = located(self, "children")
  local images = handle:list { parent = uuid, oldest_first = true, brief = true }
  for i, row in ipairs(images) do images[i] = M.new(data.context, row, true) end
  return images
end

--- Puts files in place: paths, spec objects, lists, { ["/destination"] = spec } tables; in the last table
--- `files` has more of them, and `on_progress` may be a function. A list puts each under its base name in
--- "/". Waits.
---@return bough.image image with the files; this one when there are none
function methods:apply_files(...)
  local handle, uuid, data = located(self, "apply_files")
  local plan, on_progress = files.arguments("apply_files", ...)
  if #plan == 0 then return self end
  if not handle.stage then
    raise("unsupported", "apply_files", "this engine cannot put files in place yet")
  end
  local _ <close> = hold(data.context, uuid)
  local staged <close> = files.stage(handle, plan, "apply_files", on_progress)
  local row = progress.follow(handle:put_files(uuid, staged, { command = files.describe(plan) }))
  row.config = row.config or data.row.config
  return M.new(data.context, row)
end

local function live_spec(self, command, opts, within, inside_of)
  local op = within and within.op or "popen"
  local data = data_of(self, op)
  local spec, policy = options.spec(command, opts, {
    op = op, defaults = within and within.defaults, live = true, inside = inside_of,
    image = data.row.config and defaults_of(data) or nil,
  })
  spec.eager = within and within.eager
  return spec, policy
end

-- One more process in the sandbox behind `started`. Whoever waits for the last one gets the image that it left.
local function join(started, spec, policy, op)
  local data = data_of(started, op)
  local sandbox = data.sandbox
  return live.start(sandbox, spec, policy, op, function()
    if sandbox.live > 0 or data.closed then return nil end
    local good, problem = pcall(started.wait, started)
    if not good and not data.closed then error(problem, 0) end
    return started.uuid and started or nil
  end)
end

--- Starts a live process in a sandbox of its own. Waits until it runs. The image that it leaves is `process.image`
--- after its end.
---@param command string|table shell line, or options with the command in the array part
---@param opts table? with a shell line
---@param within { op: string?, defaults: table?, on_done: fun(image: bough.image, ok: boolean)?, eager: boolean? }?
---  for sessions, as in `start`; `eager`: does not wait for the start, `wait` tells what was wrong with it
---@return bough.process
---@return bough.image started for sessions: the image in the making, until the last process has ended
function methods:popen(command, opts, within)
  local op = within and within.op or "popen"
  local handle, uuid, data = located(self, op)
  if handle.boot == nil then
    raise("unsupported", op, "this engine cannot start live processes yet")
  end
  local spec, policy = live_spec(self, command, opts, within)
  admit(handle, spec, op)
  local _ <close> = hold(data.context, uuid)
  local staged <close> = spec.files and files.stage(handle, spec.files, op, spec.on_progress) or nil
  spec.files = staged
  local sandbox = handle:boot(uuid, live.sandbox_of(spec, true))
  local started = new(data.context, {
    state = "executing", op = op, label = spec.command, sandbox = sandbox, run = sandbox, stdin = spec.stdin,
    row = { parent_uuid = uuid, command = spec.command, config = data.row.config },
    on_done = within and within.on_done,
  })
  data.context.running[started] = uuid
  local good, process = pcall(join, started, spec, policy, op)
  if not good then
    started:close()
    error(process, 0)
  end
  return process, started
end

--- One more live process in the sandbox of this one, which `popen` has begun. For sessions.
---@param command string|table
---@param opts table?
---@param under table? the session's defaults
---@param within { eager: boolean? }?
---@return bough.process|false|nil process false where there is no such sandbox, nil when it is just ending
function methods:join(command, opts, under, within)
  local data = data_of(self, "popen")
  if not data.sandbox then return false end
  if data.state ~= "executing" or not data.sandbox.hosts then return nil end
  local spec, policy = live_spec(self, command, opts, {
    op = "popen", defaults = under, eager = within and within.eager,
  }, "the first popen of a session's sandbox says it, or the session itself")
  return join(self, spec, policy, "popen")
end

--- Starts a sandbox that hosts processes until it is told to end. Waits until it is there.
---@param opts table? env, cwd, user, check, truncate_output_at: under those of each `exec`; files, limits, network,
---  hostname, disposable; timeout: seconds, then the whole sandbox is killed
---@return bough.instance
function methods:boot(opts)
  local handle, uuid, data = located(self, "boot")
  if handle.boot == nil then
    raise("unsupported", "boot", "this engine cannot host processes yet")
  end
  local spec, under = options.boot(opts, "boot")
  admit(handle, spec, "boot")
  local _ <close> = hold(data.context, uuid)
  local staged <close> = spec.files and files.stage(handle, spec.files, "boot", spec.on_progress) or nil
  spec.files = staged
  return instance.new(handle:boot(uuid, spec), {
    image = self, context = data.context, defaults = under,
    config = data.row.config and defaults_of(data) or nil,
    wrap = function(row)
      row.config = row.config or data.row.config
      return M.new(data.context, row)
    end,
  })
end

--- Writes the image out, for skopeo, podman and docker. Waits. Raises `exists`.
---@param path string a directory to make, or a file where it ends in ".tar" or the format is "docker"
---@param opts { format: "oci"|"docker"|nil, layers: "chain"|"one"|nil, compress: "gzip"|"zstd"|"none"|nil,
---  tag: string?, name: string?, on_progress: fun(event: bough.progress_event)? }? layers: the image's chain
---  (default), or one; compress: gzip for oci, none for docker; tag: its name there, default the image's
---@return string path
function methods:export(path, opts)
  local handle = located(self, "export")
  if handle.pack == nil then
    raise("unsupported", "export", "this engine cannot write images out yet")
  end
  return require "bough.export".write(self, path, opts, handle)
end

--- Adds a method to all images, or puts another in its place.
---@param name string
---@param method function
---@return function? before
function M.replace(name, method)
  local before = methods[name]
  methods[name] = method
  return before
end

function meta:__index(name)
  local method = methods[name]
  if method then return method end
  local field = fields[name]
  if field then return field(rawget(self, DATA)) end
  return nil
end

function meta:__newindex(name)
  raise("invalid", nil, "image.%s: an image never changes, so its fields cannot be set", tostring(name))
end

function meta.__eq(a, b)
  local x, y = rawget(a, DATA), rawget(b, DATA)
  if not x or not y then return false end
  return x.row.uuid ~= nil and x.row.uuid == y.row.uuid and x.context == y.context
end

function meta:__tostring()
  local data = rawget(self, DATA)
  local row, result = data.row, data.row.result
  local words = { "image" }
  words[#words + 1] = row.uuid and row.uuid:sub(1, 6) .. "…"
  if row.tag then words[#words + 1] = quote(row.tag) end
  if data.state == "executing" then
    words[#words + 1] = "executing " .. quote(data.label)
  elseif result then
    if not row.uuid then words[#words + 1] = "disposable" end
    words[#words + 1] = "exit " .. tostring(result.exit_code)
    if data.cached then words[#words + 1] = "cached" end
    if result.timed_out then words[#words + 1] = "timed out" end
  elseif data.failure then
    words[#words + 1] = "failed"
  end
  return table.concat(words, " ")
end

-- For people at a REPL: `for k, v in pairs(image)` shows what can be read.
function meta:__pairs()
  local data = rawget(self, DATA)
  local shown = {}
  for name, field in pairs(fields) do
    if not (data.brief and heavy[name]) and (bare[name] or not data.row.partial) then
      local good, value = pcall(field, data)
      if good then shown[name] = value end
    end
  end
  return next, shown, nil
end

meta.__close = function(self) methods.close(self) end

return M
