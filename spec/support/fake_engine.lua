--- An engine in memory, for specs of the Lua layer: `local box, driver = fake.open()`. The driver records
-- what it was asked (calls, last_spec, last_filter, last_keep).
--
-- Its shell knows, separated by ";": echo TEXT, warn TEXT (stderr), write PATH TEXT, cat PATH, sleep
-- SECONDS, exit N, kill N, noop, stuck (the run itself fails), nostart (it cannot be started).

local core = require "bough.core"
local engine = require "bough.engine"

local M = {}

local driver = {}
driver.__index = driver

local function new_uuid(self)
  self.count = self.count + 1
  return ("%08x-0000-4000-8000-%012x"):format(self.count * 0x9e3779b1 & 0xffffffff, self.count)
end

local function copy(from)
  local all = {}
  for name, value in pairs(from or {}) do all[name] = value end
  return all
end

local function store(self, row, files)
  row.uuid = new_uuid(self)
  self.clock = self.clock + 1
  row.created_at = 1700000000.0 + self.clock
  row.size = row.size or 0
  self.rows[#self.rows + 1] = row
  self.by_uuid[row.uuid] = row
  self.trees[row.uuid] = files
  return row
end

local function brief(row)
  row = copy(row)
  if row.result then
    row.result = copy(row.result)
    row.result.stdout, row.result.stderr = nil, nil
  end
  return row
end

local function find(self, uuid)
  local row = self.by_uuid[uuid]
  if not row then error(core.error("not_found", "no image " .. uuid, {}), 0) end
  return row
end

function driver:resolve(ref)
  self.calls.resolve = (self.calls.resolve or 0) + 1
  if self.by_uuid[ref] then return copy(self.by_uuid[ref]) end
  for _, row in ipairs(self.rows) do
    if row.tag == ref then return copy(row) end
  end
  return nil
end

function driver:list(filter)
  self.calls.list = (self.calls.list or 0) + 1
  self.last_filter = filter
  local found = {}
  for _, row in ipairs(self.rows) do
    if (not filter.tag or row.tag == filter.tag)
      and (not filter.tag_glob or (row.tag and filter.tag_glob == "*"))
      and (not filter.tagged or row.tag)
      and (not filter.parent or row.parent_uuid == filter.parent)
      and (not filter.since or row.created_at >= filter.since)
      and (not filter.before or row.created_at < filter.before) then
      table.insert(found, filter.oldest_first and #found + 1 or 1, filter.brief and brief(row) or copy(row))
    end
  end
  local page = {}
  for i = (filter.offset or 0) + 1, math.min(#found, (filter.offset or 0) + (filter.limit or #found)) do
    page[#page + 1] = found[i]
  end
  return page
end

function driver:tag(uuid, tag)
  self.calls.tag = (self.calls.tag or 0) + 1
  for _, row in ipairs(self.rows) do
    if row.tag == tag then row.tag = nil end
  end
  find(self, uuid).tag = tag
end

function driver:untag(uuid) find(self, uuid).tag = nil end

function driver:remove(uuid)
  local row = find(self, uuid)
  if row.tag then error(core.error("state", "image has a tag", { op = "remove" }), 0) end
  self.by_uuid[uuid] = nil
  for i, other in ipairs(self.rows) do
    if other == row then table.remove(self.rows, i) break end
  end
end

local job_methods = {}

function job_methods:wait(seconds)
  core.sleep(0.001)
  if self.closed and not self.over then
    error(core.error("cancelled", "closed before it was done", {}), 0)
  end
  if seconds and self.steps[1] and not self.over then
    self.done, self.total = table.unpack(table.remove(self.steps, 1))
    return nil
  end
  if not self.over then
    self.over = true
    self.good, self.result = pcall(self.work)
  end
  if not self.good then error(self.result, 0) end
  return self.result
end

function job_methods:progress() return self.done, self.total end
function job_methods:close() self.closed = true end

local job_meta = { __index = job_methods, __close = job_methods.close }

--- A piece of work as engines hand it out.
---@param work fun(): any done by the first wait that is not cut short
---@param steps integer[][]? { done, total } that the waits before it find
function M.job(work, steps)
  return setmetatable({ work = work, steps = steps or {}, done = 0, total = 0 }, job_meta)
end

function driver:import(kind, source, opts)
  self.calls.import = (self.calls.import or 0) + 1
  self.last_import = { kind = kind, source = source, tag = opts.tag }
  return M.job(function()
    local row = store(self, { origin = "import", config = self.config }, { ["/etc/motd"] = "hello\n" })
    if opts.tag then self:tag(row.uuid, opts.tag) end
    return copy(row)
  end)
end

local commands = {}
function commands.echo(state, text) state.stdout = state.stdout .. text .. "\n" end
function commands.warn(state, text) state.stderr = state.stderr .. text .. "\n" end
function commands.exit(state, code) state.code = tonumber(code) end
function commands.noop() end
function commands.write(state, text)
  local path, content = text:match("^(%S+)%s*(.*)$")
  state.files[path] = content
end
function commands.cat(state, path)
  if state.files[path] then
    state.stdout = state.stdout .. state.files[path]
  else
    state.stderr, state.code = state.stderr .. "cat: " .. path .. ": no such file\n", 1
  end
end
function commands.kill(state, number) state.signal, state.code = tonumber(number), 128 + tonumber(number) end
function commands.stuck() error(core.error("io", "the keeper has gone", { op = "wait" }), 0) end
function commands.sleep(state, seconds)
  seconds = tonumber(seconds)
  local left = state.timeout and state.timeout - state.elapsed or math.huge
  state.elapsed = state.elapsed + math.min(seconds, left)
  if left < seconds then state.timed_out, state.code = true, 137 end
end

-- What the command will have done by its end; nothing waits here.
local function execute(spec, state)
  local line = spec.argv[3] or table.concat(spec.argv, " ")
  if spec.argv[1] == "/bin/busybox" then line = "noop" end
  for command in line:gmatch("[^;]+") do
    local name, rest = command:match("^%s*(%S+)%s*(.-)%s*$")
    local action = commands[name]
    if not action then
      state.stderr, state.code = state.stderr .. name .. ": not found\n", 127
      break
    end
    action(state, rest)
    if state.code then break end
  end
  local code = state.code or 0
  return {
    origin = "run", command = spec.command,
    result = {
      exit_code = code, signal = state.signal, timed_out = state.timed_out or false, oom = false,
      ok = code == 0, elapsed_time = state.elapsed, user_time = 0.0, system_time = 0.0, max_rss = 0,
      stdout = spec.stdout and state.stdout or nil, stderr = spec.stderr and state.stderr or nil,
      truncated = {}, resources = { user_time = 0.0, system_time = 0.0, max_rss = 0 },
    },
  }
end

function driver:start(uuid, spec)
  self.calls.start = (self.calls.start or 0) + 1
  self.last_spec = spec
  find(self, uuid)
  core.sleep(0)
  if spec.argv[3] == "nostart" then
    error(core.error("not_found", "cannot execute nostart", { op = "run" }), 0)
  end
  local state = {
    stdout = "", stderr = "", elapsed = 0.0, timeout = spec.timeout, files = copy(self.trees[uuid]),
  }
  if spec.files then spec.files:put(state.files) end
  local good, row = pcall(execute, spec, state)
  local run = { running = true }
  self.live = self.live + 1
  local function finish()
    if not run.running then return end
    run.running = false
    self.live = self.live - 1
    if good then
      row.parent_uuid = uuid
      if not spec.disposable then
        store(self, row, state.files)
        if spec.cache_key and row.result.ok then self.remembered[spec.cache_key] = row.uuid end
        if spec.tag then self:tag(row.uuid, spec.tag) end
      end
    end
  end
  local clock = core.spawn(function()
    core.sleep(state.elapsed)
    finish()
  end)
  function run.wait()
    local waited = 0.0
    while run.running do
      core.sleep(0.001)
      waited = waited + 0.001
      if waited > state.elapsed then finish() end -- where no task runs, as in a generator, not the clock
    end
    if run.closed then error(core.error("cancelled", "the run was closed", { op = "run" }), 0) end
    if not good then error(row, 0) end
    return copy(row)
  end
  function run.close()
    if not run.running then return end
    self.calls.kill = (self.calls.kill or 0) + 1
    good, run.closed = false, true
    finish()
    clock:cancel()
  end
  return run
end

function driver:read(uuid, path)
  local content = find(self, uuid) and self.trees[uuid][path]
  if not content then error(core.error("not_found", path .. ": no such file", { op = "read" }), 0) end
  return content
end

function driver:list_dir(uuid, path)
  local found, prefix = {}, path:gsub("/*$", "") .. "/"
  local seen = {}
  for name, content in pairs(find(self, uuid) and self.trees[uuid]) do
    if name:sub(1, #prefix) == prefix then
      local first, more = name:sub(#prefix + 1):match("^([^/]+)(/?)")
      if not seen[first] then
        seen[first] = true
        found[#found + 1] = { name = first, kind = more == "/" and "dir" or "file", size = #content,
          mode = 420, uid = 0, gid = 0, mtime = 0, nlink = 1 }
      end
    end
  end
  if #found == 0 then error(core.error("not_found", path .. ": no such directory", { op = "ls" }), 0) end
  return found
end

function driver:info() return { images = #self.rows } end

function driver:gc(keep, dry)
  self.last_keep = keep
  return { images = 0, layers = 0, bytes = 0, dry = dry }
end

function driver:close() self.closed = true end

--- For methods added to the driver: keeps an image with these files, path -> content.
M.store = store

--- Makes a driver; `methods` adds to what it can do.
function M.new(methods)
  local made = {
    rows = {}, by_uuid = {}, trees = {}, count = 0, clock = 0, live = 0, calls = {}, closed = false,
    remembered = {}, pool = {},
  }
  for name, method in pairs(methods or {}) do made[name] = method end
  return setmetatable(made, driver)
end

--- Opens an engine on a fresh fake driver.
---@return bough.engine engine
---@return table driver
function M.open(methods)
  local made = M.new(methods)
  engine.schemes.fake = function() return made end
  return engine.open "fake://", made
end

--- An image that no run made, tagged "busybox".
function M.base(box) return box.images:import("/tmp", { tag = "busybox" }) end

return M
