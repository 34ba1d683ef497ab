--- Work on a store that can be checked afterwards, for the tests that kill things in the middle of it.
--
-- Every file that it writes tells by its name what must be in it: /data/f7-4096 holds "f7-4096\n" over and
-- over, cut at 4096 bytes. /data/list names all the files that there must be. So an image is whole or it is
-- not, whoever made it and whatever was killed.

local bough = require "bough"
local lfs = require "lfs"
local scratch = require "spec.support.scratch"

local M = {}

local random = math.random

--- What must be in a file of this name.
local function content_of(name)
  local line = name:match "[^/]*$" .. "\n"
  local size = math.tointeger(tonumber(name:match "%-(%d+)$"))
  return line:rep(size // #line + 1):sub(1, size)
end

local function new_name()
  return ("f%d-%d"):format(random(1000000), random(2) == 1 and random(200) or random(30000))
end

local PUT = [[
set -e
cd /data
put() { yes "${1##*/}" | head -c "${1##*-}" >"$1"; echo "$1" >>list; }
]]

-- A shell script that adds, replaces and removes files.
local function script()
  local lines = { PUT }
  for _ = 1, random(3) do lines[#lines + 1] = "put " .. new_name() end
  local dice = random(6)
  if dice == 1 then -- whiteouts
    lines[#lines + 1] = [[old=$(head -n 1 list); sed -i 1d list; rm -r "$old"]]
  elseif dice == 2 then -- a directory that replaces another one
    lines[#lines + 1] = "rm -rf d; mkdir d; sed -i '/^d[/]/d' list; put d/" .. new_name()
  elseif dice == 3 then
    lines[#lines + 1] = "mkdir -p d; put d/" .. new_name()
  elseif dice == 4 then -- renames copy up and leave whiteouts
    lines[#lines + 1] = "if [ -d d ]; then mv d e$$.d; mv e$$.d d; fi"
  end
  return table.concat(lines, "\n")
end

local function busybox_bytes()
  for _, path in ipairs { "/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static" } do
    local file = io.open(path, "rb")
    if file then
      local bytes = file:read "a"
      file:close()
      return bytes
    end
  end
end

--- Makes what the mix imports: a directory and a tarball of it.
--- @return string path of the directory; the tarball is beside it, with ".tar.gz" behind
function M.make_source(files)
  local dir = scratch.dir "source" .. "/tree"
  assert(lfs.mkdir(dir))
  assert(lfs.mkdir(dir .. "/data"))
  local list = {}
  for i = 1, files do
    list[i] = ("f%d-%d"):format(i, i * 37 % 9000)
    scratch.file(content_of(list[i]), dir .. "/data/" .. list[i])
  end
  scratch.file(table.concat(list, "\n") .. "\n", dir .. "/data/list")
  scratch.sh(("tar -C %s -czf %s.tar.gz ."):format(dir, dir))
  return dir
end

local function find(image, path, prefix, found)
  for _, entry in ipairs(image:ls(path)) do
    if entry.kind == "dir" then
      find(image, path .. "/" .. entry.name, prefix .. entry.name .. "/", found)
    else
      found[prefix .. entry.name] = entry.size
    end
  end
  return found
end

--- Reads all of an image; returns nothing, or what is wrong with it.
function M.trouble(image)
  local names = {}
  for _, entry in ipairs(image:ls "/") do names[entry.name] = entry.kind end
  if not names.data then -- one of those below the base, whose layers all share
    if not names.bin then return "it is empty" end
    return image:read "/bin/busybox" ~= busybox_bytes() and "/bin/busybox differs" or nil
  end
  local found = find(image, "/data", "", {})
  found.list = nil
  for name in image:read "/data/list":gmatch "[^\n]+" do
    if not found[name] then return name .. " is missing" end
    found[name] = nil
    if image:read("/data/" .. name) ~= content_of(name) then return name .. " differs" end
  end
  if next(found) then return next(found) .. " is too many" end
end

--- Reads all images of a store. Raises with what is wrong; returns how many there are.
function M.check(box)
  local images = box.images:list { number = math.huge }
  for _, image in ipairs(images) do
    local why = M.trouble(image)
    if why then error(("%s is damaged: %s"):format(image, why), 2) end
  end
  return #images
end

--- The image that the mix begins with; made once.
function M.base(box)
  local images = box.images
  if #images:list { tag = "base" } == 0 then
    images:use "busybox":run("mkdir -p /data; : >/data/list", { tag = "base", check = true })
  end
  return images:get "base"
end

local function worker(box, source, name, told)
  local images = box.images
  local tags, count = {}, 0
  -- Two tags that go round; `tags` has those that are in the store for certain.
  local function new_tag()
    count = count + 1
    return ("%s-%d"):format(name, count % 2)
  end
  local function tagged(tag, uuid)
    tags[count % 2 + 1] = tag
    told("tag", tag, uuid)
  end
  local function start_from()
    local tag = tags[random(2)]
    return images:get(tag and random(3) > 1 and tag or "base")
  end
  local steps = {
    function()
      local tag = new_tag()
      tagged(tag, start_from():run(script(), { tag = tag, check = true }).uuid)
    end,
    function()
      local s <close> = start_from():session()
      local steps = random(3)
      for _ = 1, steps do s:run(script(), { check = true }) end
      -- not back to the start: that has a tag, and untag takes all tags of an image
      if steps > 1 then s:rollback() end
      local tag = new_tag()
      s:tag_as(tag)
      tagged(tag, s.uuid)
    end,
    function()
      local from = start_from()
      bough.all {
        function() return from:run(script(), { check = true }) end,
        function() return from:run(script(), { check = true, disposable = true }) end,
        function() return from:run("sleep 60", { timeout = 0.02 }) end,
      }
    end,
    function()
      -- a tag of its own: there is no shell in it that the next steps could use
      local tag = name .. "-import"
      told("tag", tag, images:import(source .. (random(2) == 1 and ".tar.gz" or ""), { tag = tag }).uuid)
    end,
    function()
      local tag = tags[random(2)]
      if tag then
        told("untag", tag)
        images:get(tag):untag()
        for i = 1, 2 do
          if tags[i] == tag then tags[i] = nil end
        end
      end
    end,
    function() box:gc() end,
  }
  while true do steps[({ 1, 1, 1, 2, 2, 3, 4, 4, 5, 6 })[random(10)]]() end
end

--- Runs the mix in three tasks until something raises; raises that.
--- @param told fun(what: string, tag: string, uuid: string?) "tag" is told after the fact, "untag" before
function M.run(box, source, name, told)
  M.base(box)
  local tries = {}
  for i = 1, 3 do
    tries[i] = function() worker(box, source, name .. i, told) end
  end
  bough.all(tries)
end

return M
