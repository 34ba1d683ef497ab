--- Layers into the store: what is there already is used again, the rest is fetched ahead and unpacked in
-- order, and only when all are there is there an image.

local core = require "bough.core"
local errors = require "bough.error"
local progress = require "bough.progress"
local task = require "bough.task"

local M = {}

local AT_ONCE = 3 -- layers being fetched

local INTERVAL = 0.1 -- seconds between events of progress

local interruptions = { cancelled = true, timeout = true, closed = true }

--- Whether this is no failure of the work, but its end at the caller's wish.
---@param problem any
---@return boolean
function M.is_interruption(problem) return errors.is(problem) and interruptions[problem.kind] == true end

-- The engine knows limits, not what they are called here.
local function limit_text(message, opts)
  if opts.max_files and message:find "more than %d+ files" then
    return (" (max_files is %d)"):format(opts.max_files)
  elseif opts.max_bytes
    and (message:find "more than %d+ bytes of file data" or message:find "the tree is larger than") then
    return (" (max_bytes is %d)"):format(opts.max_bytes)
  end
  return ""
end

--- Puts in front of a failure of the engine what was being imported, and names the option that stopped it.
---@param problem any an error that was caught
---@param place string quoted
---@param opts table max_bytes, max_files
function M.name_source(problem, place, opts)
  if not errors.is(problem) or problem.op ~= "import" or M.is_interruption(problem) then return end
  local message = problem.message
  if problem.kind == "resource" then message = message .. limit_text(message, opts) end
  problem.message = place .. ": " .. message
end

--- A directory of our own beside the store's unfinished layers; goes when the variable is closed. Waits.
---@param handle bough.local
---@return { path: string }
function M.scratch(handle)
  local made = { path = core.fs.temp_dir(handle:info().scratch .. "/bring") }
  return setmetatable(made, { __close = function() core.fs.remove(made.path) end })
end

-- The layers that nothing may take away before there is an image of them.
local function new_leases(handle)
  local ids = {}
  return setmetatable({ add = function(id) ids[#ids + 1] = id end }, {
    __close = function()
      for _, id in ipairs(ids) do handle:release_layer(id) end
    end,
  })
end

-- Bytes of all layers together, as one event after another: at most ten times a second, and the last one.
local function new_meter(on_progress, item, layers, first)
  local total, next_time = 0, 0
  for i = first, #layers do total = total + layers[i].size end
  local meta = {}
  function meta:__call(i, bytes)
    local before = self[i] or 0
    bytes = math.min(bytes, layers[i].size)
    if bytes <= before then return end
    self.done, self[i] = self.done + bytes - before, bytes
    local now = core.now()
    if self.done < total and now < next_time then return end
    next_time = now + INTERVAL
    on_progress {
      op = self.op, item = item, done = self.done, total = total, unit = "bytes",
      finished = self.done == total or nil,
    }
  end
  -- whoever draws a bar wants to know that it ends here
  function meta:__close(problem)
    if problem == nil or self.done == total then return end
    pcall(on_progress, {
      op = self.op, item = item, done = self.done, total = total, unit = "bytes", finished = true,
      failed = true,
    })
  end
  return function(op) return setmetatable({ op = op, done = 0 }, meta) end
end

-- Starts fetching layers `first` and up; fetched[i]:wait() gives the path of layer i's content. Each begins
-- when the one AT_ONCE before it is there.
local function fetch_ahead(scope, source, first, directory, tell)
  local layers, fetched, known = source.layers, {}, {}
  for i = first, #layers do
    local before, same = fetched[i - AT_ONCE], known[layers[i].digest or ""]
    fetched[i] = scope:spawn(function()
      if before then before:wait() end
      if not same then return source:get(i, directory, tell and function(done) tell(i, done) end) end
      local path = same:wait()
      if tell then tell(i, layers[i].size) end
      return path
    end)
    if layers[i].digest then known[layers[i].digest] = same or fetched[i] end
  end
  return fetched
end

-- Where the caller cannot be suspended (a coroutine of its own inside a task, a comparator of table.sort)
-- tasks do not run.
local function may_use_tasks()
  if not core.current() then return true end
  local good, problem = pcall(core.run, function() end)
  if not good and not errors.is(problem, "state") then error(problem, 0) end
  return good
end

-- The same without tasks: each layer is fetched when it is waited for.
local function fetch_in_turn(source, first, directory, tell)
  local layers, fetched, paths = source.layers, {}, {}
  for i = first, #layers do
    local digest = layers[i].digest
    fetched[i] = { wait = function()
      if not (digest and paths[digest]) then
        local path = source:get(i, directory, tell and function(done) tell(i, done) end)
        if digest then paths[digest] = path end
        return path
      end
      if tell then tell(i, layers[i].size) end
      return paths[digest]
    end }
  end
  return fetched
end

-- Removes content that has been brought here, when no further layer needs it.
local function forget(layers, i, path, directory)
  if path:sub(1, #directory + 1) ~= directory .. "/" then return end
  for j = i + 1, #layers do
    if layers[j].digest == layers[i].digest then return end
  end
  core.fs.remove(path)
end

-- Unpacks one layer over `below`; returns its number in the store and its size.
local function unpack(handle, source, i, path, below, opts, left, tell)
  local layer, config = source.layers[i], source.config
  local job <close> = handle:add_layer {
    archive = path, below = below, chain = config.chains[i], diff_id = config.diff_ids[i],
    max_bytes = left.bytes, max_files = left.files,
  }
  local good, result = pcall(progress.follow, job, tell and function(event)
    if event.total > 0 then tell(i, layer.size * event.done // event.total) end
  end)
  if not good then
    if errors.is(result) and result.op == "import" and not M.is_interruption(result) then
      -- where we keep it is nobody's concern: which one it is counts
      result.message = result.message:gsub("^layer %S+: ", "")
      M.name_source(result, ("%s: layer %d"):format(errors.quote(opts.name), i), opts)
    end
    error(result, 0)
  end
  if tell then tell(i, layer.size) end
  if left.bytes then left.bytes = math.max(left.bytes - result.bytes, 1) end
  if left.files then left.files = math.max(left.files - result.files, 1) end
  return result.layer, result.bytes
end

--- Makes an image of a source (bough.layout tells what that is). Waits. What fails leaves nothing but
--- whole layers, which the next attempt or gc finds.
---@param handle bough.local
---@param source bough.source
---@param opts table name, tag, max_bytes, max_files, on_progress
---@return bough.row
function M.image(handle, source, opts)
  local layers, chains = source.layers, source.config.chains
  local leases <close> = new_leases(handle)
  local top, known, size = 0, 0, 0
  for i = #layers, 1, -1 do
    local id = handle:find_layer(chains[i])
    if id then
      leases.add(id)
      top, known = id, i
      break
    end
  end
  if known < #layers then
    local meter = opts.on_progress and new_meter(opts.on_progress, opts.name, layers, known + 1)
    local fetching <close> = meter and meter "download" or nil
    local unpacking <close> = meter and meter "unpack" or nil
    local left = { bytes = opts.max_bytes, files = opts.max_files }
    local scratch <close> = M.scratch(handle)
    local scope <close> = may_use_tasks() and task.scope() or nil
    local fetched = scope and fetch_ahead(scope, source, known + 1, scratch.path, fetching)
      or fetch_in_turn(source, known + 1, scratch.path, fetching)
    for i = known + 1, #layers do
      local path = fetched[i]:wait()
      local bytes
      top, bytes = unpack(handle, source, i, path, top, opts, left, unpacking)
      leases.add(top)
      size = size + bytes
      forget(layers, i, path, scratch.path)
    end
  end
  return handle:commit_image {
    layer = top, tag = opts.tag, config = source.config.defaults, size = size, origin = "import",
    command = "import " .. opts.name:gsub("%c", "?"),
  }
end

return M
