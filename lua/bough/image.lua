--- Immutable images: a file tree with the result of the run that made it.
--
-- An image is an empty table in front of private data, so that assigning to any field can be refused.
-- `start` gives an image that is still in the making (state "executing"); `wait` finishes it in place,
-- and it never changes again.

local core = require "bough.core"
local download = require "bough.download"
local entry = require "bough.entry"
local errors = require "bough.error"
local check = require "bough.check"
local options = require "bough.options"

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

-- Calls an engine method that not every engine has.
local function via(self, op, method, ...)
  local handle, uuid, data = located(self, op)
  if handle[method] == nil then
    raise("unsupported", op, "this engine cannot do that yet")
  end
  return data, handle[method](handle, uuid, ...)
end

local function copy(value)
  if type(value) ~= "table" then return value end
  local all = {}
  for name, inner in pairs(value) do all[name] = copy(inner) end
  return all
end

local heavy = { result = true, stdout = true, stderr = true } -- what a brief row lacks

local function result_of(data, name)
  if data.state == "executing" then
    raise("state", nil, "image.%s: the run has not finished: call wait() first", name)
  end
  if data.brief and heavy[name] then
    local row = data.context:handle("image." .. name):resolve(data.row.uuid)
    if not row then
      raise("not_found", nil, "image.%s: image %s is gone", name, data.row.uuid)
    end
    data.row.result, data.brief = row.result, nil
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
  fields[name] = function(data) return data.row[name] end
end
for _, name in ipairs { "exit_code", "signal", "timed_out", "stdout", "stderr", "elapsed_time", "ok" } do
  fields[name] = function(data) return result_of(data, name)[name] end
end
function fields.result(data) return copy(result_of(data, "result")) end
function fields.state(data) return data.state end
function fields.stdin(data) return data.stdin end
function fields.engine(data) return data.context.engine end

local function new(context, data)
  data.context = context
  return setmetatable({ [DATA] = data }, meta)
end

--- Makes an image object from an engine's row.
---@param context bough.context
---@param row table
---@param brief boolean? the row lacks outputs: they are fetched when asked for
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
  data.run = nil
  data.row = row or {}
  data.failure = failure
  data.state = failure and "failed" or "succeeded"
  data.context.running[self] = nil
  local on_done = data.on_done
  data.on_done = nil
  if on_done then on_done(self, failure == nil) end
end

local function last_line(text)
  local line = text and text:match("([^\n]*%S[^\n]*)%s*$")
  return line and line:gsub("%c", " "):gsub("^%s+", "")
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
  local how = ("exit code %d"):format(result.exit_code)
  if result.oom then
    how = how .. ", out of memory"
  elseif result.signal then
    how = how .. (", killed by signal %d"):format(result.signal)
  end
  local line = last_line(result.stderr)
  if line then how = ("%s (last line of stderr: %s)"):format(how, quote(line)) end
  return errors.new("exit", op, details, "%s", how)
end

--- Begins a run and returns at once, with an image in state "executing". Waits only until the command
--- has started. Raises what `run` raises before a command runs.
---@param command string|table
---@param opts table? with a shell line
---@param within { op: string, defaults: table?, on_done: fun(image: bough.image, ok: boolean)? }? for
---  sessions: the name for messages, the options under these, and whom to tell of the end, once
---@return bough.image
function methods:start(command, opts, within)
  local op = within and within.op or "start"
  local handle, uuid, data = located(self, op)
  local spec, policy = options.spec(command, opts, { op = op, defaults = within and within.defaults })
  if spec.files and not handle.put_files then
    raise("unsupported", op, "files: this engine cannot put files in place yet")
  elseif spec.pty and not handle.exec then
    raise("unsupported", op, "pty: this engine has no terminals yet")
  elseif spec.cache and not handle.cached then
    raise("unsupported", op, "cache: this engine keeps no run cache yet")
  end
  -- with `check` a failed run is an error, and an error moves no tag
  local tag_later = policy.check and spec.tag or nil
  if tag_later then spec.tag = nil end
  -- whoever runs waits for the end next: its start need not be told apart, and its failure is as good there
  spec.eager = op == "run"
  local run = handle:start(uuid, spec)
  local started = new(data.context, {
    state = "executing", row = { parent_uuid = uuid, command = spec.command }, run = run, op = op,
    label = spec.command, timeout = spec.timeout, check = policy.check, tag_later = tag_later,
    stdin = spec.stdin, on_done = within and within.on_done,
  })
  data.context.running[started] = uuid
  return started
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
  settle(self, data, nil, errors.new("cancelled", data.op, nil, "closed before it finished: %s",
    data.label))
  run:close()
end

--- A session that starts from this image.
---@param defaults table? options under those of each run; `queue = true` lines up concurrent runs
---@return bough.session
function methods:session(defaults)
  local data = select(3, located(self, "session"))
  local checked = options.defaults(defaults, "session")
  local session = core.session(data.context.engine, self, checked)
  data.context.sessions[session] = true
  return session
end

local function image_path(path, op)
  if type(path) ~= "string" or path == "" or path:find("\0", 1, true) then
    raise("invalid", op, "expected a path in the image, got %s", quote(path))
  end
  return path:sub(1, 1) == "/" and path or "/" .. path
end

--- The content of a file. Starts no sandbox; links never lead out of the image. Waits.
---@param path string
---@return string
function methods:read(path)
  local handle, uuid = located(self, "read")
  return handle:read(uuid, image_path(path, "read"))
end

--- Lists a directory, sorted by name. Waits.
---@param path string? default "/"
---@return bough.entry[]
function methods:ls(path)
  local handle, uuid = located(self, "ls")
  path = image_path(path or "/", "ls")
  local entries = handle:list_dir(uuid, path)
  for i, row in ipairs(entries) do entries[i] = entry.new(self, path, row) end
  table.sort(entries, function(a, b) return a.name < b.name end)
  return entries
end

--- Iterates over a directory: `for e in image:entries "/etc" do`.
---@param path string?
---@return fun(): bough.entry?
function methods:entries(path)
  local entries, i = methods.ls(self, path), 0
  return function()
    i = i + 1
    return entries[i]
  end
end

--- Iterates over everything below a directory, parents first; links are not followed.
---@param path string?
---@return fun(): bough.entry?
function methods:walk(path)
  local levels = { methods.entries(self, path) }
  return function()
    while #levels > 0 do
      local found = levels[#levels]()
      if not found then
        levels[#levels] = nil
      else
        if found.is_dir then levels[#levels + 1] = self:entries(found.full_path) end
        return found
      end
    end
  end
end

--- Iterates over the content of a file in chunks.
---@param path string
---@return fun(): string?
function methods:stream(path)
  local handle, uuid = located(self, "stream")
  path = image_path(path, "stream")
  if handle.open then return handle:open(uuid, path):lines("c") end
  local content = handle:read(uuid, path)
  local at = 1
  return function()
    if at > #content then return nil end
    local chunk = content:sub(at, at + 65535)
    at = at + #chunk
    return chunk
  end
end

--- Copies a file out, whole or not at all. Waits.
---@param source string path in the image
---@param destination string? local path; a directory receives the base name. Default: the base name here
---@return string path where it went
function methods:download(source, destination)
  data_of(self, "download")
  return download.save(self, image_path(source, "download"), destination)
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
  local row = data.row.parent_uuid and handle:resolve(data.row.parent_uuid)
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

--- Puts files in place: paths, lists, { destination = spec } tables. Waits.
---@return bough.image image with the files; this one when there are none
function methods:apply_files(...)
  local arguments = {}
  for i = 1, select("#", ...) do
    local one = select(i, ...)
    if type(one) ~= "string" and type(one) ~= "table" then
      raise("invalid", "apply_files", "expected paths or tables of file specs, got %s", quote(one))
    end
    if type(one) == "string" or next(one) ~= nil then arguments[#arguments + 1] = one end
  end
  if #arguments == 0 then
    located(self, "apply_files")
    return self
  end
  local data, row = via(self, "apply_files", "put_files", arguments)
  return M.new(data.context, row)
end

--- Starts a live process. Waits until it runs.
---@return bough.process
function methods:popen(...) return select(2, via(self, "popen", "popen", ...)) end

--- Starts a sandbox that hosts processes. Waits until it runs.
---@return bough.instance
function methods:boot(...) return select(2, via(self, "boot", "boot", ...)) end

--- What differs from another image: added, changed and deleted paths. Waits.
function methods:diff(other)
  local uuid = select(2, located(other, "diff"))
  return select(2, via(self, "diff", "diff", uuid))
end

--- Writes the image out as an OCI layout. Waits.
function methods:export(path) return select(2, via(self, "export", "export", path)) end

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
    if not (data.brief and heavy[name]) then
      local good, value = pcall(field, data)
      if good then shown[name] = value end
    end
  end
  return next, shown, nil
end

meta.__close = function(self) methods.close(self) end

return M
