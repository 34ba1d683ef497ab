--- A process in a sandbox of the server (a spid): its streams, its input, its end, and what is told of all that.

local core = require "bough.core"
local errors = require "bough.error"
local fold = require "bough.serve.fold"
local http = require "bough.serve.http"
local json = require "bough.json"
local record = require "bough.serve.record"
local wire = require "bough.contree.wire"

local M = {}

local PIECE = 64 << 10 -- bytes in one event
local QUIET = 0.2 -- seconds without output after which children that hold the pipe are not waited for
local MOST_QUIET = 2 -- the same for children that keep talking
local SMALL, MANY, GATHER = 4096, 32, 0.002 -- many small reads in a row: more is read at a time
local MOST_KEPT = 32 << 20 -- bytes of output in memory, of all processes of a run
local MOST_WAITING = 8 << 20 -- bytes of input that wait for a process to read them
local SHOWN = 256 << 10 -- bytes of a command's words in its event

local function problem(status, message, kind) error(http.problem(status, message, { kind = kind }), 0) end

---@class bough.serve.process
---@field spid integer
---@field pid integer
---@field ending bough.serve.ending? once it has ended
---@field told boolean its `exit` event is out
---@field private process bough.process
---@field private log bough.serve.eventlog
---@field spilled boolean its output is in the log alone
---@field private place bough.serve.place
---@field private limit integer bytes kept of each stream
---@field private kept table<string, { parts: string[], size: integer, dropped: integer }>
---@field private open integer streams that are not at their end
---@field private heard number when it last wrote
---@field private holding integer streams that are not read on, because the journal is behind
---@field private ended userdata fires at its end
---@field private changed userdata fires when a stream has ended
local process = {}
local process_meta = { __index = process, __name = "bough.serve.process" }

-- -- output ---------------------------------------------------------------------------------------------------

--- Lets go of the output that is in memory. What is asked of it then is looked up in the log.
function process:spill()
  if self.spilled then return end
  self.spilled = true
  self.place.kept = self.place.kept - self:weight()
  for _, kept in pairs(self.kept) do kept.parts = {} end
end

--- Bytes of output in memory.
---@return integer
function process:weight()
  local weight = 0
  for _, kept in pairs(self.kept) do
    for _, part in ipairs(kept.parts) do weight = weight + #part end
  end
  return weight
end

-- Keeps what is within the limit, and logs it.
local function take(self, name, bytes)
  local kept = self.kept[name]
  local room = self.limit - kept.size
  if room <= 0 then
    kept.dropped = kept.dropped + #bytes
    return
  end
  if #bytes > room then
    kept.dropped = kept.dropped + #bytes - room
    bytes = bytes:sub(1, room)
  end
  kept.size = kept.size + #bytes
  if not self.spilled and self.place.kept + #bytes > MOST_KEPT then self:spill() end
  if not self.spilled then
    kept.parts[#kept.parts + 1] = bytes
    self.place.kept = self.place.kept + #bytes
  end
  for at = 1, #bytes, PIECE do
    self.log:stream(self.spid, name, #bytes <= PIECE and bytes or bytes:sub(at, at + PIECE - 1))
  end
end

-- Reads a stream to its end. Behind the process's own end what comes is read, so that nobody is stopped by it, and
-- dropped.
local function pump(self, name, reader)
  local small = 0
  while true do
    local good, bytes = pcall(reader.read, reader, "c")
    if not good or not bytes then break end
    if not self.told then
      take(self, name, bytes)
      self.holding = self.holding + 1
      self.log:room()
      self.holding = self.holding - 1
      self.heard = core.now()
      if self.ending then self.changed:fire() end
      small = #bytes < SMALL and small + 1 or 0
      if small >= MANY and not self.ending then self.ended:wait(GATHER) end
    end
  end
  self.open = self.open - 1
  self.changed:fire()
end

-- Joins what was read, once in a while.
local function text_of(kept)
  if kept.parts[2] then kept.parts = { table.concat(kept.parts) } end
  return kept.parts[1] or ""
end

-- -- input ----------------------------------------------------------------------------------------------------

local function log_input(self, bytes)
  local left = self.limit - self.fed
  for at = 1, math.min(#bytes, left), PIECE do
    local piece = bytes:sub(at, math.min(at + PIECE - 1, left))
    self.log:stream(self.spid, "stdin", piece, at + #piece > left and #bytes > left or nil)
  end
  self.fed = self.fed + math.min(#bytes, left)
end

-- Its turn to write is the caller's.
local function feed(self, bytes, close)
  local stdin = self.process.stdin
  if #bytes > 0 then
    log_input(self, bytes)
    local good, raised = pcall(function() stdin:write(bytes):flush() end)
    if not good then
      if errors.is(raised, "cancelled") or errors.is(raised, "timeout") then error(raised, 0) end
      self.deaf = true
    end
  end
  if close and not self.deaf then
    self.input_over = true
    stdin:close()
  end
end

--- Writes to its stdin, behind what others write. Waits until the process's pipe has taken it all. Raises problem 409
--- where nothing can be written any more.
---@param bytes string
---@param close boolean the end comes behind it
function process:write(bytes, close)
  local function check()
    if self.ending then problem(409, ("process %d has ended"):format(self.spid), "closed") end
    if not self.turns or self.input_over then
      problem(409, ("the stdin of process %d is closed"):format(self.spid), "closed")
    end
    if self.deaf then problem(409, ("process %d reads its stdin no more"):format(self.spid), "closed") end
  end
  check()
  if self.waiting > 0 and self.waiting + #bytes > MOST_WAITING then
    error(http.problem(429, ("%d bytes wait already until process %d reads them"):format(self.waiting, self.spid),
      { kind = "resource", retry_after = 1 }), 0)
  end
  self.waiting = self.waiting + #bytes
  local _ <close> = setmetatable({}, { __close = function() self.waiting = self.waiting - #bytes end })
  local _ <close> = self.turns:acquire()
  check()
  feed(self, bytes, close)
  if self.deaf then check() end
end

-- What came with the request goes first.
local function start_feeding(self, spec)
  if not spec.keeps_open then return end
  self.turns, self.waiting = core.queue(), 0
  if spec.input == "" then return end
  self.turns:acquire()
  core.spawn(function()
    pcall(feed, self, spec.input, false)
    self.turns:release()
  end)
end

-- -- its life -------------------------------------------------------------------------------------------------

local function shown_env(env)
  local shown = {}
  for name, value in pairs(env) do shown[name] = wire.is_secret(name) and wire.REDACTED or value end
  return shown
end

local function spawn_event(self, spec, place)
  local data = {
    pid = self.pid, command = spec.command, args = spec.args, shell = spec.shell, cwd = spec.cwd or place.cwd or "/",
    uid = spec.uid, gid = spec.gid, timeout = spec.timeout or 0, truncate_at = spec.limit,
  }
  local size, env = #spec.command, {}
  for name, value in pairs(place.env or {}) do env[name] = value end
  for name, value in pairs(spec.env) do env[name] = value end
  for _, word in ipairs(spec.args) do size = size + #word + 3 end
  for name, value in pairs(env) do size = size + #name + #value + 6 end
  data.args = json.array(spec.args)
  data.env = shown_env(env)
  -- readers take no frame of any length
  if size > SHOWN then
    data.env = nil
    data.args = json.array {}
    data.command = spec.command:sub(1, SHOWN)
  end
  self.log:put(self.spid, "spawn", data)
end

---@class bough.serve.place where a process is to run
---@field kept integer bytes of output in memory, of all that ran here
---@field instance bough.instance
---@field log bough.serve.eventlog
---@field cwd string? of the image
---@field env table<string, string>? of the image

--- Starts a process. Waits until it runs. Raises what keeps it from that.
---@param place bough.serve.place
---@param spec table of bough.serve.body; `timeout`: seconds
---@param number fun(): integer called when it runs: its spid
---@return bough.serve.process
function M.start(place, spec, number)
  local options = {
    env = spec.env, cwd = spec.cwd, user = ("%d:%d"):format(spec.uid, spec.gid), timeout = spec.timeout,
    stdout = core.PIPE, stderr = core.PIPE,
  }
  table.move(spec.argv, 1, #spec.argv, 1, options)
  if spec.keeps_open then
    options.stdin = core.PIPE
  elseif spec.input and spec.input ~= "" then
    options.stdin = spec.input
  end
  local started = place.instance:exec(options)
  local self = setmetatable({
    spid = number(), pid = started.pid, process = started, place = place, log = place.log, limit = spec.limit,
    fed = 0, open = 2, holding = 0, spilled = false,
    kept = { stdout = { parts = {}, size = 0, dropped = 0 }, stderr = { parts = {}, size = 0, dropped = 0 } },
    began = core.now(), heard = core.now(), told = false, ended = core.condition(), changed = core.condition(),
  }, process_meta)
  spawn_event(self, spec, place)
  if spec.input and not spec.keeps_open then log_input(self, spec.input) end
  core.spawn(pump, self, "stdout", started.stdout)
  core.spawn(pump, self, "stderr", started.stderr)
  start_feeding(self, spec)
  return self
end

--- Waits for its end. Repeatable.
function process:wait()
  local good, raised = pcall(self.process.wait, self.process)
  if not good and (errors.is(raised, "cancelled") or errors.is(raised, "timeout")) then error(raised, 0) end
  if self.ending then return end
  local has_result, result = pcall(function() return self.process.result end)
  self.ending = record.ending(has_result and result or nil)
  self.ended:fire()
end

-- Whether nothing more comes, as far as anybody can tell.
local function is_quiet(self, since)
  local due = math.min(math.max(self.heard, since) + QUIET, since + MOST_QUIET)
  local left = due - core.now()
  if left > 0 then
    self.changed:wait(left)
    return false
  end
  -- behind a pause of the whole server its clock may be ahead of what is there to be read
  local heard = self.heard
  core.sleep(0)
  core.sleep(0)
  return self.holding == 0 and (self.heard == heard or core.now() >= since + MOST_QUIET)
end

--- Tells of its end, once that is there: behind all of its output. Waits for that, but not for ever: children that it
--- has left behind may hold its pipes.
---@param alone boolean? nobody is left who could
function process:conclude(alone)
  if self.told then return end
  local since = core.now()
  while self.open > 0 do
    if self.holding > 0 then -- it is the disk that is slow
      self.changed:wait(1)
      since = core.now()
    elseif alone then
      self.changed:wait(MOST_QUIET)
      if self.open > 0 and core.now() > math.max(since, self.heard) + MOST_QUIET then break end
    elseif is_quiet(self, since) then
      break
    end
  end
  self.told = true
  for _, name in ipairs { "stdout", "stderr" } do
    local kept = self.kept[name]
    if kept.dropped > 0 then
      self.log:put(self.spid, "truncated", { stream = name, bytes_emitted = kept.size, bytes_dropped = kept.dropped })
    end
  end
  self.log:put(self.spid, "exit", record.exit(self.pid, self.ending))
  self.changed:fire()
end

--- Waits until `conclude`, which another task does, is through.
function process:wait_told()
  while not self.told do self.changed:wait(1) end
end

--- Sends a signal to it and its group. Raises `invalid` for one that there is not.
---@param signal string|integer
function process:signal(signal) self.process:send_signal(signal) end

--- What is known of it, an InstanceResult. Waits, where its output is not in memory any more.
---@return table
function process:result()
  if self.spilled then
    pcall(self.log.sync, self.log)
    local result = fold.result(self.log.journal, self.log.uuid, self.spid, not self.ending and core.now() - self.began)
    if result then return result end
  end
  return record.result(self.pid, self.ending, {
    stdout = text_of(self.kept.stdout), stderr = text_of(self.kept.stderr),
    truncated = { stdout = self.kept.stdout.dropped > 0, stderr = self.kept.stderr.dropped > 0 },
  }, core.now() - self.began)
end

return M
