--- What an engine may have beyond the least: methods for `fake.open(full)`. Trees hold files only; the driver
-- records `last_items`, `last_look` and how many contents it copied.

local core = require "bough.core"
local fake = require "spec.support.fake_engine"

local full = {}

local function copy(from)
  local all = {}
  for name, value in pairs(from or {}) do all[name] = value end
  return all
end

local function fail(kind, message) error(core.error(kind, message, {}), 0) end

local function content_of(self, item)
  if item.content then return item.content end
  if item.digest then return self.pool[item.digest] or fail("not_found", "no upload " .. item.digest) end
  local file <close> = io.open(item.source, "rb") or fail("not_found", item.source .. ": no such file")
  return file:read "a"
end

-- Keeps a content; whether it is new.
local function keep(self, content)
  local digest = core.sha256(content)
  local is_new = self.pool[digest] == nil
  self.pool[digest] = content
  return digest, is_new
end

local staged_methods = {}
local staged_meta = { __index = staged_methods }
function staged_methods:close() self.driver.staged_open = self.driver.staged_open - 1 end
staged_meta.__close = staged_methods.close
function staged_methods:put(tree)
  for path, content in pairs(self.contents) do tree[path] = content end
end

function full:stage(items)
  self.calls.stage = (self.calls.stage or 0) + 1
  self.last_items = items
  return fake.job(function()
    local staged = { driver = self, contents = {}, count = #items, copied_files = 0, copied_bytes = 0 }
    local words = {}
    for i, item in ipairs(items) do
      local digest = item.target or ""
      if item.kind == "file" then
        local content = content_of(self, item)
        local is_new
        staged.contents[item.path] = content
        digest, is_new = keep(self, content)
        if is_new then
          staged.copied_files, staged.copied_bytes = staged.copied_files + 1, staged.copied_bytes + #content
        end
      end
      words[i] = ("%s %s %s"):format(item.path, item.kind, digest)
    end
    self.copied = (self.copied or 0) + staged.copied_files
    self.staged_open = (self.staged_open or 0) + 1
    staged.digest = core.sha256(table.concat(words, "\n"))
    return setmetatable(staged, staged_meta)
  end, { { 0, 100 }, { 50, 100 } })
end

function full:put_files(uuid, staged, opts)
  self.last_put = opts
  return fake.job(function()
    local tree = copy(self.trees[uuid])
    staged:put(tree)
    return copy(fake.store(self, { origin = "files", parent_uuid = uuid, command = opts.command }, tree))
  end)
end

function full:cached(key)
  self.last_key = key
  local uuid = self.remembered[key]
  return uuid and self:resolve(uuid)
end

function full:upload(item)
  return fake.job(function()
    local content = content_of(self, item)
    local digest, is_new = keep(self, content)
    return { sha256 = digest, size = #content, new = is_new }
  end)
end

function full:has_file(digest) return self.pool[digest] ~= nil end

function full:open(uuid, path)
  local content, at = self:read(uuid, path), 1
  local file = { size = #content }
  self.streams_open = (self.streams_open or 0) + 1
  local closed = false
  function file.read()
    if closed then fail("closed", "the stream is closed") end
    local chunk = content:sub(at, at + 999)
    at = at + #chunk
    return chunk ~= "" and chunk or nil
  end
  function file.close()
    if not closed then self.streams_open = self.streams_open - 1 end
    closed = true
  end
  return setmetatable(file, { __close = file.close })
end

function full:save(uuid, path, destination)
  return fake.job(function()
    local file = assert(io.open(destination, "wb"))
    file:write(self:read(uuid, path))
    file:close()
    return { bytes = 1 }
  end, { { 1, 2 } })
end

-- Everything in a tree as rows with full paths, in the order of a walk.
local function rows_of(tree)
  local rows, seen = {}, {}
  for path, content in pairs(tree) do
    rows[#rows + 1] = { path = path, kind = "file", size = #content }
    for above in path:gmatch "()/" do
      local dir = path:sub(1, above - 1)
      if dir ~= "" and not seen[dir] then
        seen[dir] = true
        rows[#rows + 1] = { path = dir, kind = "dir", size = 4096 }
      end
    end
  end
  table.sort(rows, function(a, b) return a.path:gsub("/", "\0") < b.path:gsub("/", "\0") end)
  for _, row in ipairs(rows) do
    row.mode, row.uid, row.gid, row.mtime, row.nlink = row.kind == "dir" and 493 or 420, 0, 0, 1000.0, 1
  end
  return rows
end

local function list(self, uuid, args)
  local path = args["--path"]:gsub("(.)/+$", "%1")
  local prefix = path == "/" and "/" or path .. "/"
  local depth = tonumber(args["--max-depth"] or 1000)
  local found, exists = {}, path == "/"
  for _, row in ipairs(rows_of(self.trees[uuid])) do
    if row.path == path then
      exists = true
      if row.kind ~= "dir" or depth == 0 then
        row.path = ""
        return { row }
      end
    elseif row.path:sub(1, #prefix) == prefix then
      row.path = row.path:sub(#prefix + 1)
      if select(2, row.path:gsub("/", "")) < depth then found[#found + 1] = row end
    end
  end
  if not exists then fail("not_found", path .. ": no such file or directory") end
  return found
end

local function grep(self, uuid, args)
  local found = {}
  for _, row in ipairs(rows_of(self.trees[uuid])) do
    local number = 0
    for line in (self.trees[uuid][row.path] or ""):gmatch "[^\n]+" do
      number = number + 1
      local first, last = line:find(args["-e"], 1, true)
      if first then
        found[#found + 1] = { type = "match", path = row.path, line_number = number, line = line, offset = 0,
          length = #line, submatches = { { first, last } } }
      end
    end
  end
  return found
end

local function diff(self, uuid, _, opts)
  local ours, theirs, found = self.trees[uuid], self.trees[opts.other], {}
  for path, content in pairs(ours) do
    if not theirs[path] then
      found[#found + 1] = { op = "added", path = path, what = {}, kind = "file", size = #content, mode = 420 }
    elseif theirs[path] ~= content then
      found[#found + 1] = { op = "changed", path = path, what = { "content" }, kind = "file",
        old_kind = "file", size = #content, old_size = #theirs[path], mode = 420, old_mode = 420 }
    end
  end
  for path, content in pairs(theirs) do
    if not ours[path] then
      found[#found + 1] = { op = "deleted", path = path, what = {}, old_kind = "file", old_size = #content,
        old_mode = 420 }
    end
  end
  return found
end

local commands = { list = list, grep = grep, diff = diff }

--- Hands out two records at a time.
function full:look(uuid, args, opts)
  self.last_look = args
  local named = {}
  for i = 2, #args, 2 do named[args[i]] = args[i + 1] end
  local records, at
  self.looks_open = (self.looks_open or 0) + 1
  local look = { closed = false }
  function look.next()
    core.sleep(0)
    if not records then records, at = commands[args[1]](self, uuid, named, opts), 0 end
    if at >= #records then return nil end
    at = at + 2
    return { records[at - 1], records[at] }
  end
  function look.numbers() return #records, 0, 1 end
  function look.close()
    if not look.closed then self.looks_open = self.looks_open - 1 end
    look.closed = true
  end
  return look
end

function full:compact(uuid)
  self.compacted = self.compacted or {}
  table.insert(self.compacted, uuid)
  return fake.job(function() return { merged = 2 } end, { { 1, 0 } })
end

return full
