--- The event log of one operation: written once, read by many, kept in the journal.
--
-- Each event is made into its frame (the text that goes to clients) when it happens, and all readers share that. A task
-- stores what has come; of what is stored only the end stays in memory, and readers who are further behind read the
-- journal. Nobody waits for a reader.

local core = require "bough.core"
local errors = require "bough.error"
local record = require "bough.serve.record"
local wire = require "bough.contree.wire"

local M = {}

local CAP = 100 << 20 -- bytes of frames; what processes read and write is not logged beyond
local KEPT = 256 << 10 -- bytes of stored frames that stay in memory
local UNSTORED = 4 << 20 -- whoever logs more than this ahead of the disk waits
local UNSTORED_BY_ALL = 64 << 20
local BATCH = 1 << 20 -- bytes stored at a time
local PATIENCE = 0.01 -- seconds in which events gather to be stored together
local PIECE = 64 << 10 -- bytes that a reader gets at once
local PAGE = 256 << 10 -- of the journal
local IDS = (1 << 24) - 64 -- no more events than the journal has numbers for; some are for those of the end

---@class bough.serve.eventlog
---@field uuid string of the operation
---@field last integer id of the last event; -1 before there is one
---@field capped boolean output is not logged any more
---@field failure bough.error? why it cannot be stored
---@field journal userdata
---@field private frames table<integer, string> by id, from `first` on
---@field private spids table<integer, integer>
---@field private first integer
---@field private sent integer id of the last one that the journal was given
---@field private stored integer id of the last one that it has
---@field private size integer bytes of all frames
---@field private kept integer bytes of frames that are stored and in memory
---@field private unstored integer bytes
---@field private ended boolean
---@field private changed userdata fires when there are events, or more room
---@field private finished userdata fires at the end
---@field private storing bough.task?
---@field private cap integer
local log = {}
local log_meta = { __index = log, __name = "bough.serve.eventlog" }

local unstored_by_all = 0

local function fresh(journal, uuid)
  return setmetatable({
    journal = journal, uuid = uuid, frames = {}, spids = {}, first = 0, last = -1, sent = -1, stored = -1,
    size = 0, kept = 0, unstored = 0, ended = false, capped = false, cap = CAP,
    changed = core.condition(), finished = core.condition(),
  }, log_meta)
end

--- A log that begins.
---@param journal userdata
---@param uuid string of an operation that is in the journal
---@param cap integer? bytes, default 100 MiB
---@return bough.serve.eventlog
function M.new(journal, uuid, cap)
  local self = fresh(journal, uuid)
  self.cap = cap or CAP
  return self
end

--- Waits for the first event.
---@param seconds number at most
---@return boolean # whether there is one, or never will be
function log:begins(seconds)
  local due = core.now() + seconds
  while self.last < 0 and not self.ended do
    local left = due - core.now()
    if left <= 0 then return false end
    self.changed:wait(left)
  end
  return true
end

--- Goes on with a log that an earlier server began; before the first event.
---@param id integer of the next event
function log:resume(id)
  self.first, self.last, self.sent, self.stored = id, id - 1, id - 1, id - 1
end

--- The log of an operation that is over.
---@param journal userdata
---@param uuid string
---@return bough.serve.eventlog
function M.stored(journal, uuid)
  local self = fresh(journal, uuid)
  self.first, self.last, self.ended = math.maxinteger, math.maxinteger - 1, true
  return self
end

-- -- storing --------------------------------------------------------------------------------------------------

-- Drops from memory what the journal has, but for the end.
local function trim(self, most)
  while self.first <= self.stored and self.kept > most do
    local id = self.first
    self.kept = self.kept - #self.frames[id]
    self.frames[id], self.spids[id], self.first = nil, nil, id + 1
  end
end

-- The journal has those up to `upto`, or never will.
local function settle(self, upto, size)
  self.stored = math.max(self.stored, upto)
  self.kept = self.kept + size
  self.unstored = self.unstored - size
  unstored_by_all = unstored_by_all - size
  trim(self, KEPT)
  self.changed:fire()
end

-- Hands the next frames over, as far as they fit one batch.
local function send(self)
  local frames, spids, size = {}, {}, 0
  local from = self.sent + 1
  local id = from
  while id <= self.last and size < BATCH do
    local frame = self.frames[id]
    frames[#frames + 1], spids[#spids + 1] = frame, self.spids[id]
    size = size + #frame
    id = id + 1
  end
  self.sent = id - 1
  local good, note = pcall(self.journal.append, self.journal, self.uuid, from, spids, frames)
  if not good then self.failure = self.failure or note end
  return { note = good and note or nil, upto = id - 1, size = size }
end

local function await(self, batch)
  local good, problem = pcall(function()
    if batch.note then batch.note:wait() end
  end)
  if not good then
    self.failure = self.failure or errors.is(problem) and problem
      or errors.new("io", nil, nil, "%s", tostring(problem))
  end
  settle(self, batch.upto, batch.size) -- where that failed it goes on without: who keeps up with it gets all there is
end

-- Where nothing can be stored any more.
local function give_up(self)
  local size = 0
  for id = self.sent + 1, self.last do size = size + #self.frames[id] end
  self.sent = self.last
  settle(self, self.last, size)
end

-- What comes within a moment goes together.
local function store(self)
  while self.sent < self.last and not self.ended do
    if self.unstored < BATCH then self.finished:wait(PATIENCE) end
    if self.sent < self.last then await(self, send(self)) end
  end
  self.storing = nil
  self.changed:fire()
end

local function start_storing(self)
  if self.storing then return end
  if self.failure then
    give_up(self)
  else
    self.storing = core.spawn(store, self)
  end
end

--- Waits until all is in the journal. Raises why it is not.
function log:sync()
  while self.storing or self.stored < self.last do self.changed:wait(1) end
  if self.failure then error(self.failure, 0) end
end

--- Waits while the disk is far behind.
function log:room()
  while not self.failure and (self.unstored > UNSTORED
    or unstored_by_all > UNSTORED_BY_ALL and self.unstored > PIECE) do
    self.changed:wait(1)
  end
end

-- -- writing --------------------------------------------------------------------------------------------------

local function put(self, spid, kind, data)
  local id = self.last + 1
  local of = spid and ('"spid":%d,'):format(spid) or ""
  local frame = ('id: %d\nevent: %s\ndata: {"id":%d,"ts":"%s",%s"type":"%s","data":'):format(id, kind, id,
    wire.rfc3339(core.time()), of, kind) .. data .. "}\n\n"
  self.frames[id], self.spids[id], self.last = frame, spid or -1, id
  self.size, self.unstored = self.size + #frame, self.unstored + #frame
  unstored_by_all = unstored_by_all + #frame
  start_storing(self)
  self.changed:fire()
  return id
end

--- Logs an event. Never waits.
---@param spid integer? the process, 0 for the sandbox
---@param kind string "init", "spawn", ...
---@param data table|string JSON text, or what becomes it
---@return integer? id nil after the end
function log:put(spid, kind, data)
  if self.ended then return nil end
  if type(data) == "table" then data = record.encode(data) end
  return put(self, spid, kind, data)
end

--- Logs what a process has read or written, unless the log is too long already. Never waits.
---@param spid integer
---@param kind "stdin"|"stdout"|"stderr"
---@param bytes string at most 64 KiB
---@param truncated boolean? there was more
---@return boolean # whether it is in the log
function log:stream(spid, kind, bytes, truncated)
  if self.ended or self.capped then return false end
  if self.size >= self.cap or self.last >= IDS then
    self.capped = true
    put(self, 0, "size_cap", record.encode { limit_bytes = self.cap, file_size = self.size })
    return false
  end
  local shown = core.is_text(bytes) and '{"value":' .. record.encode(bytes) .. ',"encoding":"ascii"'
    or '{"value":"' .. core.base64_encode(bytes) .. '","encoding":"base64"'
  put(self, spid, kind, shown .. (truncated and ',"truncated":true}' or "}"))
  return true
end

--- No more events come. What is not stored yet is handed to the journal before this returns, so that what the caller
--- stores next comes behind it. Never waits.
function log:finish()
  if self.ended then return end
  self.ended = true
  self.finished:fire()
  while self.sent < self.last and not self.failure do
    core.spawn(await, self, send(self))
  end
  if self.failure then give_up(self) end
  self.changed:fire()
end

--- Lets go of what is in memory: readers go on with the journal. Only of one that has ended and is stored.
function log:drop()
  if self.failure then return end
  trim(self, 0)
end

-- -- reading --------------------------------------------------------------------------------------------------

---@class bough.serve.eventlog.reader
---@field after integer id of the last event that it has had
---@field private log bough.serve.eventlog
---@field private spid integer?
local reader = {}
local reader_meta = { __index = reader, __name = "bough.serve.eventlog.reader" }

--- Reads from behind an event on.
---@param after integer its id; -1: from the beginning
---@param spid integer? only events of this process
---@return bough.serve.eventlog.reader
function log:reader(after, spid)
  return setmetatable({ log = self, after = math.max(after, -1), spid = spid }, reader_meta)
end

--- Whether what comes behind an event can be had.
---@param after integer
---@return boolean
function log:has(after)
  return not self.failure or math.max(after, -1) + 1 >= self.first
end

-- Frames in memory, as one text; nil for none.
local function from_memory(self)
  local source, parts, size = self.log, {}, 0
  local id = self.after + 1
  while id <= source.last and size < PIECE do
    if not self.spid or source.spids[id] == self.spid then
      local frame = source.frames[id]
      parts[#parts + 1] = frame
      size = size + #frame
    end
    id = id + 1
  end
  self.after = math.max(self.after, id - 1)
  return parts[1] and table.concat(parts) or nil
end

-- A page of the journal; nil when there are no more of them before those in memory.
local function from_journal(self)
  local source = self.log
  if source.failure then error(source.failure, 0) end
  local upto = source.first - 1
  local text, last = source.journal:events(source.uuid, self.after, self.spid, PAGE)
  self.after = text and last or upto
  return text
end

--- The next events as one text. Waits for them, as long as the operation runs. Raises where they are lost.
---@param seconds number? at most; 0: not at all
---@return string? frames nil when there are none
---@return boolean? over there never will be
function reader:next(seconds)
  local due = seconds and core.now() + seconds
  local source = self.log
  while true do
    local text
    if self.after + 1 < source.first then
      text = from_journal(self)
    else
      text = from_memory(self)
    end
    if text then return text end
    if self.after >= source.last then
      if source.ended then return nil, true end
      local left = due and due - core.now()
      if left and left <= 0 then return nil, false end
      source.changed:wait(left)
    end
  end
end

return M
